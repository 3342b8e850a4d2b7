"""Attention by PyTorch's `scaled_dot_product_attention`, one entry per kernel.

https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
https://docs.pytorch.org/docs/stable/generated/torch.nn.attention.sdpa_kernel.html
"""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def chosen_by_pytorch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout_p: float,
) -> Tensor:
    """Let PyTorch choose the kernel, which may silently be MATH; called like `manual`."""
    gqa = q.size(1) != k.size(1)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=causal, scale=scale, enable_gqa=gqa
    )


def forced(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """Run one kernel or fail: with a list of one there is no fallback.

    Args:
        q, k, v, options: as `chosen_by_pytorch` takes them.

    Raises:
        RuntimeError: the kernel cannot run; the message depends on the torch release.
    """
    # MATH consists of several operations. Under autocast each would be cast, and torch.func would get a
    # float32 gradient where it expects a 16-bit one; 16-bit inputs need no autocast.
    single = kernel is SDPBackend.MATH and q.dtype in (torch.bfloat16, torch.float16)
    apart = torch.autocast(q.device.type, enabled=False) if single else nullcontext()
    with sdpa_kernel([kernel]), apart:
        return chosen_by_pytorch(q, k, v, **options)


math = partial(forced, SDPBackend.MATH)
flash = partial(forced, SDPBackend.FLASH_ATTENTION)
efficient = partial(forced, SDPBackend.EFFICIENT_ATTENTION)
cudnn = partial(forced, SDPBackend.CUDNN_ATTENTION)
