"""From ids to logits: one model a file, all with one forward contract; `registry` builds them by name."""
