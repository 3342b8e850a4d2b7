"""Random inputs of an attention call, the same for the same call."""

import torch
from torch import Tensor

from flashmore.rules import AttentionCall


def random_inputs(call: AttentionCall, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Standard normal q, k and v, and the mask.

    Every query sees key 0. A boolean mask of all queries alike is padding: it hides the last keys of each
    item, at most a half. Another hides each key with probability ½. A mask of numbers is standard normal.

    Returns:
        q, k and v, which require gradients if `call.needs_grad`, and the mask or None.
    """
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, call.dtype)
    q, k, v = (
        torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(call.needs_grad)
        for shape in (call.query, call.key, call.value)
    )
    if call.mask is None:
        return q, k, v, None
    numbers = torch.randn(call.mask, generator=generator)
    if call.mask_dtype != "bool":
        return q, k, v, numbers.to(device, getattr(torch, call.mask_dtype))
    position = torch.arange(call.mask[-1])
    if len(call.mask) > 1 and call.mask[-2] == 1:
        seen = torch.rand((*call.mask[:-1], 1), generator=generator) * len(position) / 2
        return q, k, v, (position < len(position) - seen.floor()).to(device)
    return q, k, v, ((numbers > 0) | (position == 0)).to(device)
