"""What rewrites bring: both versions in turn in one process."""
