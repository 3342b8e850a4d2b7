"""Costs of attention by arithmetic, floating-point operations and bytes, and the time for each shape."""

import math
from collections.abc import Iterable
from typing import Literal

from flashmore.benchmark.attention.plan import ITEM_BYTES, Shape
from flashmore.measuring.measure import Clock
from flashmore.specs import backend_spec

Pass = Literal["forward", "backward", "both"]
REFERENCE_BYTES = 8
SHARE_OF_FREE = 0.8
"""Share of the free memory to use; the rest is for other processes."""


class TimeBudget:
    """Time for a list of shapes: each gets a share, and unused time goes to later ones."""

    def __init__(self, seconds: float, shapes: Iterable[Shape], clock: Clock) -> None:
        self.clock = clock
        self.end = clock() + seconds
        # Work grows with T², but short shapes need repetitions: a compromise between equal and T² shares.
        self._ahead = [shape.T * math.sqrt(shape.pairs * shape.D) for shape in shapes]

    def left(self) -> float:
        """Remaining seconds of the budget; negative if exceeded."""
        return self.end - self.clock()

    def next_share(self) -> float:
        """Seconds for the next shape of the list."""
        share = self.left() * self._ahead[0] / sum(self._ahead)
        del self._ahead[0]
        return max(0.0, share)


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
