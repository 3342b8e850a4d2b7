"""The backends' names, where a program can list them without importing torch."""

from typing import Literal, get_args

Backend = Literal["manual", "sdpa", "math", "flash", "efficient", "cudnn"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
FUSED: tuple[Backend, ...] = ("flash", "efficient", "cudnn")
"""The backends that never write the (T, S) matrix of weights to memory."""
