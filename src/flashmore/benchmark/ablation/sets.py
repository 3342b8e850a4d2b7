"""Sets of speed-ups for an ablation."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from flashmore.errors import ConfigError
from flashmore.speedups import CATALOGUE, EXACT, GROUPS

START = "none"
"""The first variant's name."""
GENERATION = "it is about generation, and a training step has nothing of it"
NOT_IN_A_STEP = {"kv-cache": GENERATION}


@dataclass(frozen=True)
class LeftOut:
    """A speed-up without a variant."""

    name: str
    why: str


def added(
    asked: tuple[str, ...], why_not: Callable[[str], str | None]
) -> tuple[tuple[str, ...], list[LeftOut]]:
    """The speed-ups to add, in the catalogue's order, and those that cannot be.

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
            left_out.append(LeftOut(name, why))
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
