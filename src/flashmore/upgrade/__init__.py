"""Hand-written attention in someone's own source: found, rewritten, tested, measured."""
