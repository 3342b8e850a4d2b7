"""A file in, batches out."""
