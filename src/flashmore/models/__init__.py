"""Models from ids to logits: one per file, with a common forward contract; `registry` builds them by name."""
