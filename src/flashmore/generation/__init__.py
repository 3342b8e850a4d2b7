"""From a run to names: sampling, filters, and the log-probability of a name."""
