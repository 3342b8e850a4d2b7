"""The variants of an ablation: which speed-ups to add, and how each compares with the others."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from flashmore.benchmark.variant import Variant
from flashmore.errors import ConfigError
from flashmore.speedups import ALGORITHM, CATALOGUE, EXACT, GROUPS, NUMERICS, Exactness

NOT_IN_A_STEP = {"kv-cache": "it is about generation, and a training step has nothing of it"}


@dataclass
class SpeedupVariant(Variant):
    """One set of speed-ups, named after the one that was added or left out."""

    speedups: tuple[str, ...] = ()
    first_step_seconds: float | None = None
    """Time to decide, build, compile and run the first step."""
    loss_difference: float | None = None
    """For an inexact set: its loss after the checked steps minus the plain loop's, in nats."""
    ratio: dict[str, Any] | None = None
    """Against the first variant, as in a record."""
    ratio_before: dict[str, Any] | None = None
    """Against the previous variant; with one left out, against the full set."""
    break_even_steps: int | None = None
    """Steps that make up for a longer first step than the previous variant's; None: never."""

    @property
    def exactness(self) -> Exactness:
        """Exactness of the set: that of its least exact member."""
        found = {CATALOGUE[name].exactness for name in self.speedups}
        return next((kind for kind in (ALGORITHM, NUMERICS) if kind in found), EXACT)


def compare(variants: Sequence[SpeedupVariant], alone: Sequence[SpeedupVariant]) -> None:
    """Fill in the ratios and break-even steps."""
    timed = [variant for variant in variants if variant.ok]
    for before, variant in pairwise(timed):
        variant.ratio = timed[0].ratio_to(variant)
        variant.ratio_before = before.ratio_to(variant)
        variant.break_even_steps = break_even(before, variant)
    for variant in alone:
        if variant.ok and timed:
            variant.ratio = timed[0].ratio_to(variant)
            variant.ratio_before = timed[-1].ratio_to(variant)


def break_even(before: SpeedupVariant, variant: SpeedupVariant) -> int | None:
    """Steps that make up for a longer first step; None if a step is not faster."""
    assert before.step_ms is not None
    assert variant.step_ms is not None
    assert variant.ratio_before is not None
    saved_ms = before.step_ms.median - variant.step_ms.median
    if variant.ratio_before["verdict"] != "faster" or saved_ms <= 0:
        return None
    cost_ms = 1000 * ((variant.first_step_seconds or 0.0) - (before.first_step_seconds or 0.0))
    return max(0, -int(-cost_ms // saved_ms))


def added(
    asked: tuple[str, ...], why_not: Callable[[str], str | None]
) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The speed-ups to add, in the catalogue's order, and those that cannot be, as in a record.

    Args:
        asked: names, or the groups `exact`, `all` and `auto`, which means all here.
        why_not: returns why a speed-up cannot work here, or None.

    Raises:
        ConfigError: an unknown name, one requested by name that cannot be added, or nothing to add.
    """
    named = {name for name in asked if name not in GROUPS}
    for name in named - set(CATALOGUE):
        raise ConfigError("a speed-up of the catalogue", f"'{name}'", ", ".join(CATALOGUE))
    everything = "all" in asked or "auto" in asked
    names, left_out = [], []
    for name, entry in CATALOGUE.items():
        in_a_group = everything or ("exact" in asked and entry.exactness == EXACT)
        if name not in named and not in_a_group:
            continue
        why = NOT_IN_A_STEP.get(name) or why_not(name)
        if why is None:
            names.append(name)
        elif name in named:
            raise ConfigError(f"the speed-up {name} on the ablation", why, "--speedups exact or all")
        else:
            left_out.append({"name": name, "why": why})
    if not names:
        found = f"--speedups {' '.join(asked)}"
        raise ConfigError("at least one speed-up to add", found, ", ".join(("exact", "all", *CATALOGUE)))
    return tuple(names), left_out


def without(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names without one speed-up and those that require it."""
    return tuple(other for other in names if other != name and name not in CATALOGUE[other].needs)


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """Names in the catalogue's order."""
    return tuple(name for name in CATALOGUE if name in names)
