"""Rules for which attention kernels support a call, as tables that do not import torch."""
