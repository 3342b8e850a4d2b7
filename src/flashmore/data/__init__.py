"""Data: from a file to batches."""
