"""Ways of computing attention: one contract, one reference, one file per way."""
