"""Models from ids to logits: with a common forward contract; `registry` builds them by name."""
