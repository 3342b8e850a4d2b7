"""Benchmarks the attention kernels alone, against T."""
