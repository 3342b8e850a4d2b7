"""One variant of an ablation, and how it stands to the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from flashmore.measuring.statistics import RatioBetween, Spread, ratio
from flashmore.speedups import ALGORITHM, CATALOGUE, EXACT, NUMERICS, Exactness


@dataclass
class Variant:
    """One set of speed-ups: its numbers, or why it has none."""

    name: str
    """What was added, or `without` and what was left out."""
    speedups: tuple[str, ...]
    why_not: str | None = None
    first_step_seconds: float | None = None
    """To decide, build, compile and make the first step."""
    budget_used: float | None = None
    """For an exact set, the error of its first losses as a share of the budget; above 1 it has no time."""
    loss_difference: float | None = None
    """For a set that is not exact: its loss after the checked steps less the plain loop's, in nats."""
    peak_bytes: int | None = None
    step_ms: Spread | None = None
    samples_ms: list[list[float]] = field(default_factory=list)
    ratio: RatioBetween | None = None
    """Against the first variant."""
    ratio_before: RatioBetween | None = None
    """Against the variant before, or for one left out against all together."""
    break_even_steps: int | None = None
    """Steps after which its first step has paid for itself, against the variant before; None: never."""

    @property
    def ok(self) -> bool:
        """Whether it ran, is right and was timed."""
        return self.why_not is None

    @property
    def exactness(self) -> Exactness:
        """Of the whole set: that of its least exact member."""
        found = {CATALOGUE[name].exactness for name in self.speedups}
        return next((kind for kind in (ALGORITHM, NUMERICS) if kind in found), EXACT)


def compare(variants: Sequence[Variant], alone: Sequence[Variant]) -> None:
    """Fill in the ratios, and when each variant has paid for itself."""
    timed = [variant for variant in variants if variant.ok]
    for before, variant in pairwise(timed):
        variant.ratio = _between(timed[0], variant)
        variant.ratio_before = _between(before, variant)
        variant.break_even_steps = break_even(before, variant)
    for variant in alone:
        if variant.ok and timed:
            variant.ratio = _between(timed[0], variant)
            variant.ratio_before = _between(timed[-1], variant)


def _between(of: Variant, to: Variant) -> RatioBetween:
    return RatioBetween(of.name, to.name, ratio(of.samples_ms, to.samples_ms))


def break_even(before: Variant, variant: Variant) -> int | None:
    """After how many steps a longer first step has been earned back; None where a step is not faster."""
    assert before.step_ms is not None
    assert variant.step_ms is not None
    assert variant.ratio_before is not None
    assert before.first_step_seconds is not None
    assert variant.first_step_seconds is not None
    saved_ms = before.step_ms.median - variant.step_ms.median
    if variant.ratio_before.ratio.verdict != "faster" or saved_ms <= 0:
        return None
    cost_ms = 1000 * (variant.first_step_seconds - before.first_step_seconds)
    return max(0, -int(-cost_ms // saved_ms))
