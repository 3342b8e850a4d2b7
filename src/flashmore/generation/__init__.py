"""Generation from a run: sampling, filters, and the log-probability of a name."""
