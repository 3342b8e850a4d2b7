"""A backend's answer and gradients, held against `manual` in float64."""

import torch
from torch import Tensor

from flashmore.backends.contract import attention
from flashmore.measuring.accuracy import Judgement, judge_all


def attention_accuracy(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Judgement, ...]:
    """Judge the output and all three gradients of one backend on these inputs.

    Args:
        backend: a name in `flashmore.backends.names.BACKENDS`.
        q: (B, H, T, D), in the precision under test; likewise k and v, (B, H, S, D).
        causal, mask, scale: as in `flashmore.backends.contract.attention`.

    Returns:
        A judgement each for `out`, `dq`, `dk` and `dv`.

    Raises:
        BackendUnavailable: the backend cannot run on these inputs.
        ValueError: the float64 result is not finite (a fully masked row), so that nothing can be compared.
    """
    # A cotangent of random numbers: a sum as the loss would hide errors that cancel.
    shape = (*q.shape[:3], v.size(3))
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in (q, k, v)]
        bias = mask.to(dtype) if mask is not None and mask.dtype != torch.bool else mask
        out = attention(*leaves, backend=name, causal=causal, mask=bias, scale=scale)
        grads = torch.autograd.grad(out, leaves, cotangent.to(out))
        return dict(zip(("out", "dq", "dk", "dv"), (out.detach(), *grads), strict=True))

    return judge_all(run(backend, q.dtype), run("manual", q.dtype), run("manual", torch.float64))
