"""Training: from a config to a trained run."""
