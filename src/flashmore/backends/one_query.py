"""Attention of one new position to all positions so far: what a step of generation computes.

Shape letters: B batch, T positions, H heads, D channels a head.
"""

from torch import Tensor


def attend_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from the last position to every position, in plain products and sums.

    Vaswani et al. 2017, "Attention Is All You Need" (https://arxiv.org/abs/1706.03762), section 3.2.1. With
    one query a head there is no matrix product left to be fused: a kernel of scaled_dot_product_attention, or
    a batched product, sets out once for each of the B × H heads, which takes longer than the arithmetic.

    Args:
        q: (B, H, D), floating point: the query of the last position.
        k: (T, B, H, D), of q's dtype and device: positions first, so that a new one lies in one piece.
        v: (T, B, H, D), likewise.

    Returns:
        (B, H, D).
    """
    scores = (q * q.size(-1) ** -0.5 * k).sum(-1, keepdim=True)  # (T, B, H, D) -> (T, B, H, 1)
    y: Tensor = (scores.softmax(0) * v).sum(0)  # (T, B, H, D) -> (B, H, D)
    return y
