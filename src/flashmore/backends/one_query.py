"""Attention of one new position to all positions so far, for a generation step.

Shape letters: B batch, T positions, H heads, D channels per head.
"""

from torch import Tensor


def attend_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from the last position to every position, with elementwise products and sums.

    Vaswani et al. 2017, "Attention Is All You Need" (https://arxiv.org/abs/1706.03762), section 3.2.1. With
    one query per head there is no matmul left to fuse: scaled_dot_product_attention or a batched matmul has
    an overhead for each of the B × H heads, which exceeds the arithmetic.

    Args:
        q: (B, H, D), floating point: the query of the last position.
        k: (T, B, H, D), of q's dtype and device: positions first, so that a new one is contiguous.
        v: (T, B, H, D), likewise.

    Returns:
        (B, H, D).
    """
    scores = (q * q.size(-1) ** -0.5 * k).sum(-1, keepdim=True)  # (T, B, H, D) -> (T, B, H, 1)
    y: Tensor = (scores.softmax(0) * v).sum(0)  # (T, B, H, D) -> (B, H, D)
    return y
