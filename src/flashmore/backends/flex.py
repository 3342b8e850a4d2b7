"""FlexAttention: PyTorch compiles a fused kernel for each shape and mask on its first call.

https://docs.pytorch.org/docs/stable/nn.attention.flex_attention.html
Without torch.compile the same function materialises the (L, S) scores, so here it always runs compiled.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

KERNELS = 1024
"""Most kernels of one process: one for each shape, dtype and kind of mask. PyTorch's limits are 8 and 256."""
_seen: set[object] = set()
"""Calls whose kernel is compiled: raising the limit takes longer than a short call."""


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    # fullgraph: an error instead of PyTorch's silent fallback to the uncompiled function
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return compiled


def flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout_p: float,
) -> Tensor:
    """Called like `manual`; blocks of a causal mask that no query sees are skipped, those of other masks not.

    Raises:
        RuntimeError: dropout, a mask of integers, a gradient other than on CUDA, or what cannot be compiled.
    """
    if dropout_p > 0:
        raise RuntimeError("FlexAttention does not support dropout")
    if mask is not None and not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise RuntimeError(f"a mask of {mask.dtype}")
    if not torch.is_grad_enabled():  # PyTorch refuses on the CPU whatever requires a gradient, even then
        q, k, v = q.detach(), k.detach(), v.detach()
    elif q.device.type != "cuda" and any(one is not None and one.requires_grad for one in (q, k, v, mask)):
        raise RuntimeError(f"FlexAttention has no backward pass on {q.device.type}")
    B, H, L, _ = q.shape
    S = k.size(2)
    options: dict[str, Any] = {"scale": scale, "enable_gqa": k.size(1) != H}
    if mask is not None:
        options["score_mod"] = _modified(mask.expand(B, H, L, S))
    if torch.compiler.is_compiling():
        options["block_mask"] = _causal(L, S, str(q.device)) if causal else None
        inside: Tensor = flex_attention(q, k, v, **options)
        return inside
    options["block_mask"] = _remembered_causal(L, S, str(q.device)) if causal else None
    key = _key(causal, scale, q, k, v, *(() if mask is None else (mask,)))
    more = {"recompile_limit": KERNELS, "accumulated_recompile_limit": KERNELS}
    with nullcontext() if key in _seen else torch._dynamo.config.patch(more):
        out = _compiled()(q, k, v, **options)
    _seen.add(key)
    return out


def _key(causal: bool, scale: float | None, *tensors: Tensor) -> object:
    """Everything that PyTorch compiles another kernel for."""
    modes = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(tensors[0].device.type),
    )
    described = ((one.shape, one.stride(), one.dtype, one.device, one.requires_grad) for one in tensors)
    return causal, scale, *modes, *described


def _modified(mask: Tensor) -> Callable[..., Tensor]:
    """A function that applies a mask (B, H, L, S) to a score."""

    def hide(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.where(mask[b, h, i, j], score, -math.inf)

    def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + mask[b, h, i, j]

    return hide if mask.dtype == torch.bool else add


def _causal(L: int, S: int, device: str) -> BlockMask:
    return create_block_mask(lambda _b, _h, i, j: j <= i, None, None, L, S, device=device)


@lru_cache(maxsize=64)
def _remembered_causal(L: int, S: int, device: str) -> BlockMask:
    with torch.inference_mode(False):  # autograd cannot save inference tensors, and a later call may train
        return _causal(L, S, device)
