"""A config in, a trained run out."""
