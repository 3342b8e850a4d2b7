"""Benchmarks, one per folder."""
