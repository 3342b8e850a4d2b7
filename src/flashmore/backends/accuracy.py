"""Compares a backend's output and gradients with `manual` in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

from flashmore.backends.contract import attention
from flashmore.measuring.accuracy import Judgement, float64_device, judge_all


def attention_accuracy(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
    part: tuple[int, int] | None = None,
    attend: Callable[..., Tensor] = attention,
) -> tuple[Judgement, ...]:
    """Judge the output and all three gradients of one backend on these inputs.

    Args:
        backend, q, k, v, causal, mask, scale: as `flashmore.backends.contract.attention` takes them, in the
            precision under test; no mask together with `part`.
        part: compare only this many batch items and heads, the last ones, if the float64 (T, S) matrices for
            all would not fit. The backend still computes everything; None compares everything.
        attend: the function under test: `attention`, or its compiled form.

    Returns:
        One judgement each for `out`, `dq`, `dk` and `dv`.

    Raises:
        BackendUnavailable: the backend cannot run on these inputs.
        ValueError: the float64 result is not finite (a fully masked row), so nothing can be compared.
    """
    # A random cotangent: a sum as the loss would hide errors that cancel.
    shape = (*q.shape[:3], v.size(3))
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(name: str, dtype: torch.dtype, attend: Callable[..., Tensor], *qkv: Tensor) -> dict[str, Tensor]:
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in qkv]
        bias = None
        if mask is not None:
            bias = mask.to(leaves[0].device).to(mask.dtype if mask.dtype == torch.bool else dtype)
        out = attend(*leaves, backend=name, causal=causal, mask=bias, scale=scale)
        wanted = cotangent[-out.size(0) :, -out.size(1) :].to(out.dtype).to(out.device)
        grads = torch.autograd.grad(out, leaves, wanted)
        return dict(zip(("out", "dq", "dk", "dv"), (out.detach(), *grads), strict=True))

    B, H = part or q.shape[:2]
    answers = run(backend, q.dtype, attend, q, k, v)
    # The last ones, because index overflow occurs at the end.
    last = [tensor[-B:, -H:] for tensor in (q, k, v)]
    plain = run("manual", q.dtype, attention, *last)
    on_float64 = (tensor.to(float64_device(q.device)) for tensor in last)
    exact = run("manual", torch.float64, attention, *on_float64)
    return judge_all({name: tensor[-B:, -H:] for name, tensor in answers.items()}, plain, exact)
