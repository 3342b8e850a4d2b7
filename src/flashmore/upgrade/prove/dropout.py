"""Dropout in training is proved by what random numbers can show: mean, variance, and the share of zeros.

With the weights' dropout, an output is a sum of kept weights times values: its mean tells the factor
1/(1 − p), its variance p. Where there is one key alone, the output is 0 exactly when that key is dropped,
which shows p itself, whatever the layout.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from flashmore.upgrade.prove.case import Lines, MakeArguments, Setting, surroundings
from flashmore.upgrade.prove.result import CaseResult

DRAWS = 200
SIGMAS = 6.0
"""How far two means of equal things may lie apart: by chance in one of 500 million comparisons."""
ROUNDING = 1e-5
"""What two float32 computations of one mean may differ by, with nothing random in them."""


def is_random(lines: Lines, make: MakeArguments, setting: Setting) -> bool:
    """Whether two runs with different seeds differ.

    Raises:
        RuntimeError, ValueError, IndexError and so on: the lines do not take these inputs.
    """
    one, two = (_draw(lines, make, setting, seed) for seed in (0, 1))
    return one.shape != two.shape or not torch.equal(one.nan_to_num(), two.nan_to_num())


def compare_draws(name: str, old: Lines, new: Lines, make: MakeArguments, setting: Setting) -> CaseResult:
    """Compare mean and variance over many draws.

    Args:
        name: what the case is called.
        old: the original lines; they must be known to take these inputs.
        new: the rewritten ones.
        make: fresh arguments, with dropout on.
        setting: `exact` is taken as False and `backward` as False.
    """
    setting = replace(setting, exact=False, backward=False)
    try:
        before, after = _draws(old, make, setting, 0), _draws(new, make, setting, DRAWS)
    except Exception as error:  # noqa: BLE001 - whatever the rewrite raises speaks against it
        return CaseResult(name, "differs", f"the rewrite raises {type(error).__name__}: {error}")
    if before.shape != after.shape:
        return CaseResult(name, "differs", f"shape {tuple(after.shape[1:])} not {tuple(before.shape[1:])}")
    finite = before.isfinite().all(0)
    if not finite.any():
        return CaseResult(name, "not compared", "the original is NaN")
    before, after = before[:, finite], after[:, finite]
    far = _apart(before, after)
    if far > SIGMAS:
        return CaseResult(name, "differs", f"the mean over {DRAWS} draws lies {far:.0f} standard errors off")
    one, two = (((draws - draws.mean(0)) ** 2).flatten(1).mean(1) for draws in (before, after))
    far = _apart(one, two)
    if far > SIGMAS:
        ratio = (two.mean() / one.mean()).item() if one.mean() > 0 else float("inf")
        return CaseResult(
            name, "differs", f"the variance over {DRAWS} draws is {ratio:.2f} of the original's"
        )
    return CaseResult(name, "equal", f"mean and variance over {DRAWS} draws")


def compare_zeros(name: str, old: Lines, new: Lines, make: MakeArguments, setting: Setting) -> CaseResult:
    """Compare the share of outputs that are 0, where there is one key alone."""
    setting = replace(setting, exact=False, backward=False)
    try:
        before = _draws(old, make, setting, 0)
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
        return CaseResult(name, "skipped", f"the original does not take it: {error}")
    if not before.isfinite().all():
        return CaseResult(name, "not compared", "the original is NaN")
    try:
        after = _draws(new, make, setting, DRAWS)
    except Exception as error:  # noqa: BLE001 - whatever the rewrite raises speaks against it
        return CaseResult(name, "differs", f"the rewrite raises {type(error).__name__}: {error}")
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


def _draws(lines: Lines, make: MakeArguments, setting: Setting, first_seed: int) -> Tensor:
    seeds = range(first_seed, first_seed + DRAWS)
    return torch.stack([_draw(lines, make, setting, seed) for seed in seeds]).double()


def _draw(lines: Callable[..., object], make: MakeArguments, setting: Setting, seed: int) -> Tensor:
    with torch.no_grad(), torch.random.fork_rng([]), surroundings(setting):
        torch.manual_seed(seed)
        result = lines(*(argument.value for argument in make(False)))
    outs = [result] if isinstance(result, Tensor) else list(result)  # type: ignore[call-overload]
    return torch.cat([out.flatten() for out in outs])
