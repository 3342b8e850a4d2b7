"""What the kernels cost alone, over T."""
