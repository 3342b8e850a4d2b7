"""Options of `bench attention`, for Python and the command line.

Does not import torch, so that `flashmore bench attention --help` answers at once.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from flashmore.errors import ConfigError
from flashmore.specs import Kernel, backends

Dtype = Literal["float32", "bfloat16", "float16"]
ITEM_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
Value = TypeVar("Value")
LARGEST = 2**24
"""Upper bound of sizes; larger values are typos, and exceed what any kernel supports."""


@dataclass(frozen=True)
class Shape:
    """Self-attention of one shape: q, k and v are (B, H, T, D) each."""

    B: int
    H: int
    T: int
    D: int
    dtype: Dtype
    causal: bool

    @property
    def pairs(self) -> int:
        """Pairs of batch item and head: the number of (T, T) matrices."""
        return self.B * self.H

    @property
    def setting(self) -> "Shape":
        """Everything except the length: the shapes of one setting form one curve against T."""
        return replace(self, T=0)


@dataclass(frozen=True)
class AttentionPlan:
    """Sizes to measure; several values of one option are combined with those of every other.

    Raises:
        ConfigError: a value out of range.
    """

    lengths: tuple[int, ...] = ()
    """Sequence lengths T; none means the powers of 2 from 16 to 4096, on a GPU to 16384."""
    batch_size: tuple[int, ...] = ()
    """Batch sizes B, the same at every T; none means 2, on a GPU 4."""
    n_head: tuple[int, ...] = ()
    """Attention heads H; none means 4, on a GPU 16."""
    head_dim: tuple[int, ...] = ()
    """Channels per head, D; none means 64, on a GPU 128."""
    dtype: tuple[Dtype, ...] = ()
    """Dtype of q, k and v; none means float32, on a GPU bfloat16."""
    causal: bool = False
    """Measure causal attention; the default unless --full is given."""
    full: bool = False
    """Measure attention without a mask; with --causal both are measured."""
    backends: tuple[Kernel, ...] = tuple(name for name, spec in backends().items() if spec.kernel)
    """Attention backends; one that cannot run is listed with the reasons."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to use; `auto` selects a GPU if there is one."""
    seconds: float = 150.0
    """Time budget of the whole measurement in seconds; what would exceed it is left out and named."""
    memory: float | None = None
    """Memory budget in GiB; none means four fifths of the free memory."""

    def __post_init__(self) -> None:
        for name in ("lengths", "batch_size", "n_head", "head_dim"):
            for size in getattr(self, name):
                _require(name, size, 1 <= size <= LARGEST, f"a whole number from 1 to {LARGEST:,}")
        for backend in self.backends:
            kernels = [name for name, spec in backends().items() if spec.kernel]
            _require("backends", backend, backend in kernels, ", ".join(kernels))
        _require("backends", "none", bool(self.backends), "at least one name")
        for dtype in self.dtype:
            _require("dtype", dtype, dtype in ITEM_BYTES, ", ".join(ITEM_BYTES))
        _require("seconds", self.seconds, 0 < self.seconds < math.inf, "above 0, for example 150")
        if self.memory is not None:
            _require("memory", self.memory, 0 < self.memory < math.inf, "above 0, in GiB, for example 4")

    def shapes(self, device: str) -> list[Shape]:
        """Every shape to measure: all settings at the shortest length first, in the order of the options."""
        on_gpu = device == "cuda"
        longest = 16_384 if on_gpu else 4096
        powers = tuple(2**power for power in range(4, longest.bit_length()))
        masks = (True,) * (self.causal or not self.full) + (False,) * self.full
        return [
            Shape(B, H, T, D, dtype, causal)
            for T in sorted(_once(self.lengths or powers))
            for B in _once(self.batch_size or ((4,) if on_gpu else (2,)))
            for H in _once(self.n_head or ((16,) if on_gpu else (4,)))
            for D in _once(self.head_dim or ((128,) if on_gpu else (64,)))
            for dtype in _once(self.dtype or (("bfloat16",) if on_gpu else ("float32",)))
            for causal in masks
        ]


def _once(values: tuple[Value, ...]) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(values))


def _require(name: str, value: object, holds: bool, valid: str) -> None:
    if not holds:
        raise ConfigError(f"a sensible --{name.replace('_', '-')}", f"{value}", valid)
