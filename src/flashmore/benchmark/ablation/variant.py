"""One variant of an ablation, and its comparison with the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from flashmore.measuring.statistics import RatioBetween, Spread, ratio
from flashmore.speedups import ALGORITHM, CATALOGUE, EXACT, NUMERICS, Exactness


@dataclass
class Variant:
    """One set of speed-ups: its numbers, or why it has none."""

    name: str
    """The speed-up added, or `without` and the one left out."""
    speedups: tuple[str, ...]
    why_not: str | None = None
    first_step_seconds: float | None = None
    """Time to decide, build, compile and run the first step."""
    budget_used: float | None = None
    """For an exact set, the error of its first losses as a share of the budget; above 1 it is not timed."""
    loss_difference: float | None = None
    """For an inexact set: its loss after the checked steps minus the plain loop's, in nats."""
    peak_bytes: int | None = None
    step_ms: Spread | None = None
    samples_ms: list[list[float]] = field(default_factory=list)
    ratio: RatioBetween | None = None
    """Against the first variant."""
    ratio_before: RatioBetween | None = None
    """Against the previous variant; with one left out, against the full set."""
    break_even_steps: int | None = None
    """Steps that make up for a longer first step than the previous variant's; None: never."""

    @property
    def ok(self) -> bool:
        """Whether it ran, is correct and was timed."""
        return self.why_not is None

    @property
    def exactness(self) -> Exactness:
        """Exactness of the set: that of its least exact member."""
        found = {CATALOGUE[name].exactness for name in self.speedups}
        return next((kind for kind in (ALGORITHM, NUMERICS) if kind in found), EXACT)


def compare(variants: Sequence[Variant], alone: Sequence[Variant]) -> None:
    """Fill in the ratios and break-even steps."""
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
    """Steps that make up for a longer first step; None if a step is not faster."""
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
