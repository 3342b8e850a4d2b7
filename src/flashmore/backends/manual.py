"""Attention by hand: the reference for every other backend, and a generation step's.

Attention Is All You Need (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), equation 1:
softmax(Q Kᵀ / √D) V.

Shapes: B batch, H heads, T queries, S keys, D channels per head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def manual(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout_p: float,
) -> Tensor:
    """Scores, scale and mask, softmax, times V; materialises the whole (T, S) matrix.

    Args and result as in `flashmore.backends.contract.attention`. A fully masked row gives NaN.
    """
    T, S, D = q.size(-2), k.size(-2), q.size(-1)
    if (groups := q.size(1) // k.size(1)) > 1:
        k, v = (part.repeat_interleave(groups, 1) for part in (k, v))  # (B, H_kv, S, D) -> (B, H, S, D)

    scores = q @ k.transpose(-2, -1)  # (B, H, T, D) @ (B, H, D, S) -> (B, H, T, S)

    scores = scores * (1 / math.sqrt(D) if scale is None else scale)
    if causal:
        future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(diagonal=1)
        scores = scores.masked_fill(future, -math.inf)
    elif mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask

    weights = F.softmax(scores, dim=-1)  # each row of S weights sums to 1
    weights = F.dropout(weights, dropout_p)

    return weights.to(v.dtype) @ v  # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D)


def attend_last(q: Tensor, kept: Tensor, places: Tensor) -> Tensor:
    """Attend from the last position of each sequence to all of its positions, without gradients.

    With one query per head there is no matmul left to fuse: scaled_dot_product_attention or a batched matmul
    has an overhead for each of the B × H heads, which exceeds the arithmetic. So this consists of elementwise
    products and sums of contiguous copies.

    Args:
        q: (B, H, D), floating point: the query of the last position.
        kept: (N, H * D), of q's dtype and device: keys and values, each in a row of its own.
        places: (2, S, B) int64: the rows of the keys and of the values of each position of each sequence.

    Returns:
        (B, H, D).
    """
    B, H, D = q.shape
    k, v = F.embedding(places, kept).view(2, -1, B, H, D).unbind()  # 2 × (S, B, H, D)
    weights = k.mul_(q * D**-0.5).sum(-1, keepdim=True).softmax(0)  # (S, B, H, 1)
    y: Tensor = v.mul_(weights).sum(0)  # (S, B, H, D) -> (B, H, D)
    return y
