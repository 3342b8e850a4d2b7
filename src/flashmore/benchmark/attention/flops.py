"""Analytical costs of attention: floating-point operations and bytes.

Let N = B·H·T² be the number of scores and E = B·H·T·D the number of elements of q.
"""

from typing import Literal

from flashmore.benchmark.attention.plan import ITEM_BYTES, Shape
from flashmore.specs import backend_spec

Pass = Literal["forward", "backward", "both"]
PASSES: tuple[Pass, ...] = ("forward", "backward", "both")
REFERENCE_BYTES = 8


def attention_flops(B: int, H: int, L: int, S: int, D: int, *, causal: bool, which: Pass) -> float:
    """Floating-point operations of attention, as published benchmarks count them.

    Forward 4·B·H·L·S·D, two products of 2·L·S·D each; half of it when causal; backward, which has five such
    products, 2.5 times as many. The count is the same for every backend: computing the masked half, or the
    scores twice, does not count (Dao 2023, FlashAttention-2, section 4).

    Args:
        B, H, L, S, D: batch, heads, queries, keys, channels per head.
        causal: half of the scores are masked.
        which: forward, backward, or both together.
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

    Args:
        device: `cpu`, `cuda` or `mps`.
        threads: CPU threads.
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
        return 5 * elements * item + rows + threads * 2 * _tile_bytes(shape.T)
    return elements * (4 * item + 3 * 4) + rows


def inputs_bytes(shape: Shape) -> int:
    """Bytes of q, k, v and the incoming gradient."""
    return 4 * shape.pairs * shape.T * shape.D * ITEM_BYTES[shape.dtype]


def check_bytes(shape: Shape, checked_pairs: int) -> int:
    """Bytes for comparing this many (T, T) matrices with `manual` in float64."""
    return (3 * checked_pairs * shape.T**2 + 8 * shape.pairs * shape.T * shape.D) * REFERENCE_BYTES


def _tile_bytes(T: int) -> int:
    """Bytes of one thread's tile of the CPU kernel, which is smaller for few queries."""
    queries = 256 if T >= 768 else 64 if T >= 192 else 32
    return 4 * min(queries, T) * min(512, T)
