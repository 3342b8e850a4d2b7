"""A recipe in, a trained run out."""
