"""Ways of computing attention: one contract, one oracle, one file per way."""
