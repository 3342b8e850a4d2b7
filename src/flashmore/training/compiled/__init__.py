"""Compiled training steps: one function of flat buffers, compiled once and kept for later runs."""
