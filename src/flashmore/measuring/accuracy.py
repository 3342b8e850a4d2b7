"""The error budget for every kernel and every rewrite.

A result passes if its largest error from float64 is at most twice that of the plain computation in the same
precision, plus 16 roundings of the largest result (correct CPU kernels need up to 6 in float32 gradients).
The form follows FlashAttention's own tests (Dao 2023).

There is one exception. If a gradient is a small difference of large terms (with a single key those of q and k
are exactly 0), a kernel returns the rounding errors of these terms. So a tensor is allowed at least 4
roundings of the largest tensor of the same computation, and 64 in the precision of sums, float32 at best.
A sum of n terms, such as the gradient of a number that scales all queries, may be such a difference too: it
is allowed 4 roundings of a term times the root of n, to which n independent errors add up.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

PLAIN_ERROR_FACTOR = 2
ROUNDINGS = 16
ROUNDINGS_OF_LARGEST = 4
ROUNDINGS_OF_SUMS = 64


@dataclass(frozen=True)
class Judgement:
    """The error of one tensor relative to float64, and its budget."""

    name: str
    error: float
    """Largest absolute difference from the float64 result; infinite if the result is not finite."""
    budget: float

    @property
    def budget_used(self) -> float:
        """The error as a share of the budget; above 1 if it is exceeded."""
        return self.error / self.budget if self.budget else float(self.error > 0)

    @property
    def good(self) -> bool:
        """Whether the error is finite and within the budget."""
        return self.error < float("inf") and self.error <= self.budget


def judge(
    name: str,
    answer: Tensor,
    plain: Tensor,
    reference: Tensor,
    *,
    largest_of_all: float = 0.0,
    summed: float = 0.0,
    eps: float | None = None,
) -> Judgement:
    """Compare one tensor with its float64 reference.

    Args:
        name: the tensor's name in reports, such as `dq`.
        answer: the tensor under test, of any shape, in the precision under test.
        plain: the plain computation of the same in the same precision.
        reference: the plain computation in float64, finite.
        largest_of_all: the largest absolute value of all float64 results of the same computation.
        summed: of a sum, its largest term times the root of their number.
        eps: rounding unit of the computation if its result has a wider dtype, like the float32 gradients of
            16-bit autocast; None means that of `plain`'s dtype.

    Raises:
        ValueError: shapes differ, or the reference is not finite, so nothing can be compared.
    """
    if not answer.shape == plain.shape == reference.shape:
        raise ValueError(f"shapes differ: {answer.shape}, {plain.shape}, {reference.shape}")
    if reference.dtype != torch.float64 or not reference.isfinite().all():
        raise ValueError(f"the reference of {name} must be finite float64")
    eps = torch.finfo(plain.dtype).eps if eps is None else eps
    eps_of_sums = min(eps, torch.finfo(torch.float32).eps)
    cancelled = (ROUNDINGS_OF_LARGEST * eps + ROUNDINGS_OF_SUMS * eps_of_sums) * largest_of_all
    cancelled = max(cancelled, ROUNDINGS_OF_LARGEST * eps * summed)
    budget = PLAIN_ERROR_FACTOR * _largest_error(plain, reference) + max(
        ROUNDINGS * eps * _largest(reference), cancelled
    )
    return Judgement(name, _largest_error(answer, reference), budget)


def judge_all(
    answers: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    *,
    eps: float | None = None,
) -> tuple[Judgement, ...]:
    """Compare several named tensors of one computation with their references, using `judge`."""
    largest = max(_largest(tensor) for tensor in reference.values())
    return tuple(
        judge(name, answers[name], plain[name], reference[name], largest_of_all=largest, eps=eps)
        for name in reference
    )


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item()


def float64_device(device: torch.device) -> torch.device:
    """The device for float64 references of computations on `device`: MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _largest_error(answer: Tensor, reference: Tensor) -> float:
    error = (answer.to(reference.device).double() - reference).abs().max().item()
    return error if error == error else float("inf")
