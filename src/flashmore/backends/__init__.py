"""Attention backends: one contract, one reference, one file per implementation."""
