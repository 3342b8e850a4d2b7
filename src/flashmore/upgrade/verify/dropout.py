"""Dropout in training is tested by what random numbers can show: mean, variance, and the share of zeros.

With the weights' dropout, an output is a sum of kept weights times values: its mean tells the factor
1/(1 − p), its variance p. Where there is one key alone, the output is 0 exactly when that key is dropped,
which shows p itself, whatever the layout.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flashmore.upgrade.verify.case import Lines, LinesRaised, MakeArguments
from flashmore.upgrade.verify.result import CaseResult
from flashmore.upgrade.verify.tensors import Argument

if TYPE_CHECKING:
    from flashmore.upgrade.verify.runner import Runner

DRAWS = 200
SIGMAS = 6.0
"""How far two means of equal things may lie apart: by chance in one of 500 million comparisons."""
ROUNDING = 1e-5
"""What two float32 computations of one mean may differ by, with nothing random in them."""


def is_random(lines: "Runner", make: MakeArguments) -> bool:
    """Whether two runs with different seeds differ.

    Raises:
        LinesRaised: the lines do not take these inputs.
    """
    one, two = lines.draws(make(False), range(2)).nan_to_num()
    return not torch.equal(one, two)


def compare_draws(name: str, old: "Runner", new: "Runner", make: MakeArguments) -> CaseResult:
    """Compare mean and variance over many draws.

    Args:
        name: what the case is called.
        old: the original lines; they must be known to take these inputs.
        new: the rewritten ones.
        make: fresh arguments, with dropout on.
    """
    try:
        before = old.draws(make(False), range(DRAWS))
        after = new.draws(make(False), range(DRAWS, 2 * DRAWS))
    except LinesRaised as error:
        return CaseResult(name, "differs", f"the rewrite raises {error.kind}: {error.message}")
    if before.shape != after.shape:
        return CaseResult(name, "differs", f"shape {tuple(after.shape[1:])} not {tuple(before.shape[1:])}")
    finite = before.isfinite().all(0)
    if not finite.any():
        return CaseResult(name, "not compared", "the original is NaN")
    before, after = before[:, finite], after[:, finite]
    far = _apart(before, after)
    if far > SIGMAS:
        return CaseResult(name, "differs", f"the mean over {DRAWS} draws is off by {far:.0f} standard errors")
    one, two = (((draws - draws.mean(0)) ** 2).flatten(1).mean(1) for draws in (before, after))
    far = _apart(one, two)
    if far > SIGMAS:
        ratio = (two.mean() / one.mean()).item() if one.mean() > 0 else float("inf")
        return CaseResult(
            name, "differs", f"the variance over {DRAWS} draws is {ratio:.2f} of the original's"
        )
    return CaseResult(name, "equal", f"mean and variance over {DRAWS} draws")


def compare_zeros(name: str, old: "Runner", new: "Runner", make: MakeArguments) -> CaseResult:
    """Compare the share of outputs that are 0, where there is one key alone."""
    try:
        before = old.draws(make(False), range(DRAWS))
    except LinesRaised as error:
        return CaseResult(name, "skipped", f"the original rejects it: {error.message}")
    if not before.isfinite().all():
        return CaseResult(name, "not compared", "the original is NaN")
    try:
        after = new.draws(make(False), range(DRAWS, 2 * DRAWS))
    except LinesRaised as error:
        return CaseResult(name, "differs", f"the rewrite raises {error.kind}: {error.message}")
    # A draw's zeros come in rows, so the draw and not the number is what is counted.
    one, two = ((draws == 0).double().flatten(1).mean(1) for draws in (before, after))
    shares = f"{one.mean():.3f} of the original's outputs are 0, {two.mean():.3f} of the rewrite's"
    return CaseResult(name, "differs" if _apart(one, two) > SIGMAS else "equal", shares)


def _apart(one: Tensor, two: Tensor) -> float:
    """The largest distance of two means over draws, in standard errors."""
    distance = (one.mean(0) - two.mean(0)).abs()
    deviation = (one.var(0) + two.var(0)).sqrt()
    error = deviation / DRAWS**0.5 + ROUNDING * (1 + one.mean(0).abs())
    return float((distance / error).nan_to_num(posinf=1e9).max()) if distance.numel() else 0.0


def draw(lines: Lines, make: Callable[[], list[Argument]], seeds: range) -> Tensor:
    """All numbers of the outputs for each seed: (seeds, numbers), float64."""
    return torch.stack([_drawn(lines, make, seed) for seed in seeds]).double()


def _drawn(lines: Lines, make: Callable[[], list[Argument]], seed: int) -> Tensor:
    # Not torch.manual_seed, which notes the whole stack for each device that has not been used yet.
    torch.default_generator.manual_seed(seed)
    with torch.no_grad():
        result = lines(*(argument.value for argument in make()))
    outs = [result] if isinstance(result, Tensor) else list(result)
    return torch.cat([out.flatten() for out in outs])
