"""Benchmarks whole training steps with different attention backends."""
