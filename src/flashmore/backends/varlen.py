"""FlashAttention for sequences of any lengths one after the other, here all of the same length.

https://docs.pytorch.org/docs/stable/nn.attention.varlen.html
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout_p: float,
) -> Tensor:
    """Called like `manual`. The kernel takes (N, H, D): copies, unless q, k and v are views of such tensors.

    Raises:
        RuntimeError: a mask, dropout, causal attention that is not square, or what the kernel refuses.
    """
    if mask is not None or dropout_p > 0:
        raise RuntimeError("varlen_attn supports neither a mask nor dropout")
    (B, H, L, _), S = q.shape, k.size(2)
    if causal and L != S:
        raise RuntimeError("varlen_attn would align the causal mask bottom-right")
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (q, k, v))  # (B, H, T, D) -> (B·T, H, D)
    starts = [torch.arange(0, B * T + 1, T, dtype=torch.int32, device=q.device) for T in (L, S)]
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0) if causal else (-1, -1)}
    if k.size(1) != H:  # torch 2.11 has no such option
        options["enable_gqa"] = True
    out = cast("Tensor", varlen_attn(q, k, v, starts[0], starts[1], L, S, **options))
    return out.view(B, L, *out.shape[1:]).transpose(1, 2)  # (B·L, H, D) -> (B, H, L, D)
