"""Options of `bench attention`, for Python and the command line, and its costs by arithmetic."""

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from flashmore.errors import ConfigError
from flashmore.specs import Kernel, backend_spec, backends

Dtype = Literal["float32", "bfloat16", "float16"]
ITEM_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
REFERENCE_BYTES = 8
SHARE_OF_FREE = 0.8
"""Share of the free memory to use; the rest is for other processes."""
Pass = Literal["forward", "backward", "both"]
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
        """The number of (T, T) matrices: one per batch item and head."""
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


def attention_flops(B: int, H: int, L: int, S: int, D: int, *, causal: bool, which: Pass) -> float:
    """Floating-point operations of attention, as published benchmarks count them.

    Forward 4·B·H·L·S·D, two products of 2·L·S·D each; half of it when causal; backward, which has five such
    products, 2.5 times as many. The count is the same for every backend: computing the masked half, or the
    scores twice, does not count (Dao 2023, FlashAttention-2, section 4).

    Args:
        B, H, L, S, D: batch, heads, queries, keys, channels per head.
    """
    forward = 4.0 * B * H * L * S * D * (0.5 if causal else 1.0)
    return forward * {"forward": 1.0, "backward": 2.5, "both": 3.5}[which]


def peak_estimate(backend: str, shape: Shape, *, device: str, threads: int) -> int:
    """Estimate the peak bytes of forward and backward together, beyond q, k and v.

    - `manual` holds three (T, T) matrices per head at once (in the backward pass: the weights, their
      gradient, and that of the scores), and a byte mask.
    - `math` holds three as well. Its forward pass holds two, a byte for each score, and a floating-point
      mask. It computes in at least float32, so 16-bit inputs are copied.
    - The fused kernels hold no matrix: output, gradients, one number per row, and tiles. On the CPU each
      thread has one tile in the forward and two in the backward pass, of up to 256 × 512 float32. On CUDA the
      tiles are on-chip, and gradients may be accumulated in float32: an upper estimate.
    """
    item = ITEM_BYTES[shape.dtype]
    scores, elements = shape.pairs * shape.T**2, shape.pairs * shape.T * shape.D
    if backend == "math":
        lifted = 3 * elements * 4 if item < 4 else 0
        forward = scores * (2 * 4 + 1) + shape.T**2 * 4 * shape.causal + 2 * elements * 4
        return max(forward, 3 * scores * 4 + 4 * elements * 4) + lifted
    if backend_spec(backend).materializes_scores:
        return (3 * scores + 3 * elements) * item + shape.T**2 * shape.causal
    rows = 8 * shape.pairs * shape.T
    if device == "cpu":
        queries = 256 if shape.T >= 768 else 64 if shape.T >= 192 else 32  # of a tile of the CPU kernel
        tile_bytes = 4 * min(queries, shape.T) * min(512, shape.T)
        return 5 * elements * item + rows + threads * 2 * tile_bytes
    return elements * (4 * item + 3 * 4) + rows


def inputs_bytes(shape: Shape) -> int:
    """Bytes of q, k, v and the incoming gradient."""
    return 4 * shape.pairs * shape.T * shape.D * ITEM_BYTES[shape.dtype]


def check_bytes(shape: Shape, checked_pairs: int) -> int:
    """Bytes for comparing this many (T, T) matrices with `manual` in float64."""
    return (3 * checked_pairs * shape.T**2 + 8 * shape.pairs * shape.T * shape.D) * REFERENCE_BYTES
