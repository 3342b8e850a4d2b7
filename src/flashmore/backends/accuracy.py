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
        backend: a name in `flashmore.specs.backends()`.
        q: (B, H, T, D), in the precision under test; likewise k and v, (B, H, S, D).
        causal, mask, scale: as in `flashmore.backends.contract.attention`; with `part` only a
            mask (T, S).
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

    B, H = part or q.shape[:2]

    def last(tensor: Tensor) -> Tensor:  # the last ones, because index overflow occurs at the end
        return tensor[-B:, -H:]

    def run(
        name: str,
        dtype: torch.dtype,
        inputs: tuple[Tensor, ...],
        cotangent: Tensor,
        attend: Callable[..., Tensor] = attention,
    ) -> dict[str, Tensor]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        bias = None
        if mask is not None:
            bias = mask.to(leaves[0].device).to(mask.dtype if mask.dtype == torch.bool else dtype)
        out = attend(*leaves, backend=name, causal=causal, mask=bias, scale=scale)
        grads = torch.autograd.grad(out, leaves, cotangent.to(out.dtype).to(out.device))
        return dict(zip(("out", "dq", "dk", "dv"), (out.detach(), *grads), strict=True))

    whole = run(backend, q.dtype, (q, k, v), cotangent, attend)
    answers = {name: last(tensor) for name, tensor in whole.items()}
    inputs: tuple[Tensor, ...] = (last(q), last(k), last(v))
    plain = run("manual", q.dtype, inputs, last(cotangent))
    inputs = tuple(each.to(float64_device(q.device)) for each in inputs)
    return judge_all(answers, plain, run("manual", torch.float64, inputs, last(cotangent)))
