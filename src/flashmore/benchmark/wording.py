"""Formatting of results, shared by the terminal and reports."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

MIB = 2**20
SETTING = ("B", "H", "D", "dtype", "causal")
"""Fields that identify an attention row, except T."""
SEED_EXPERIMENT_MS = {"manual": 6.77, "flash": 5.81}
"""Milliseconds per step in the experiment that this project grew from, as reported by its author."""


def digits(value: float) -> str:
    """At least three significant digits, without exponent: 0.0123, 1.23, 12.3, 1,234."""
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, places)}f}"


def quantity(value: float | None, unit: float = 1) -> str:
    """A value in a unit, or a dash for None."""
    return "–" if value is None else digits(value / unit)


def quartiles(spread: Row) -> str:
    """The quartiles of a median."""
    return f"{digits(spread['low'])} – {digits(spread['high'])}"


def ratio_text(ratio: Row) -> str:
    """A ratio with its 95 % interval."""
    return f"{ratio['value']:.3f} ({interval(ratio)})"


def interval(ratio: Row) -> str:
    """The 95 % interval of a ratio."""
    return f"{ratio['low']:.3f} – {ratio['high']:.3f}"


def ratio_cells(ratio: Row | None, column: str) -> dict[str, str]:
    """A ratio, its interval and its verdict, by column; empty if there is no ratio."""
    found = ("", "", "") if ratio is None else (f"{ratio['value']:.3f}", interval(ratio), ratio["verdict"])
    return dict(zip((column, "95 % interval", "verdict"), found, strict=True))


def machine(environment: Row) -> str:
    """The device and, for a CPU, the number of threads."""
    name: str = environment["device_name"] or environment["device"]
    if environment["device"] != "cpu":
        return name
    threads = environment["threads"]
    return f"{name}, {threads} thread{'s' * (threads != 1)}"


def setting_title(setting: Row) -> str:
    """B, H, D, dtype and mask of rows of `bench attention`."""
    mask = "causal" if setting["causal"] else "every query sees every key"
    return f"B {setting['B']}, H {setting['H']}, D {setting['D']}, {setting['dtype']}, {mask}"


def context_title(found: Row) -> str:
    """Context and batch of a training step."""
    return f"T {found['context']:,}, batch {found['batch']}"


def same_setting(one: Row, other: Row) -> bool:
    """Whether two rows of `bench attention` differ only in T and backend."""
    return all(one[name] == other[name] for name in SETTING)


def left_out(rows: Sequence[Row]) -> list[str]:
    """What was left out of one setting, with one line per reason.

    Args:
        rows: rows of `bench attention`.
    """
    lengths: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        if row["pass"] == "both" and not row["ok"]:
            lengths.setdefault(row["why_not"], {}).setdefault(row["backend"], []).append(row["T"])
    every = len({row["T"] for row in rows})
    lines = []
    for why, backends in lengths.items():
        where = [
            backend if len(found) == every else f"{backend} at T = {', '.join(f'{T:,}' for T in found)}"
            for backend, found in backends.items()
        ]
        lines.append(f"left out: {' and '.join(where)}: {why}")
    return lines


def crossover_sentence(T: int | None, ratios: Sequence[Row]) -> str:
    """A sentence on the length from which on fused attention is faster.

    Args:
        T: the crossover of one setting, or None.
        ratios: ratios of the same setting.
    """
    if not ratios:
        return "No crossover: it needs manual and a fused backend at the same T."
    lengths = sorted({ratio["T"] for ratio in ratios})
    if T is None:
        return f"Fused attention does not win here up to T = {lengths[-1]:,}: no crossover."
    if lengths[0] == T:
        return f"Fused attention wins at every T that was measured, from {T:,} to {lengths[-1]:,}."
    return f"Fused attention wins from T = {T:,} on, up to the {lengths[-1]:,} that were measured."


def share_sentence(found: Row) -> str:
    """Attention's share of a training step, and the upper bound of a perfect kernel's gain (Amdahl).

    Args:
        found: one context of a record of kind `step`.
    """
    share = found["attention_share"]
    if share is None:
        return "Nothing was timed."
    name = next((variant["name"] for variant in found["variants"] if variant["ok"]), "the first variant")
    told = f"Attention alone takes {100 * share:.0f} % of {name}'s step"
    low, high = found["attention_share_low"], found["attention_share_high"]
    if low is not None and high is not None:
        told += f" (95 %: {100 * low:.1f} – {100 * high:.1f} %)"
    if found["most_gain"] is None:
        return f"{told}."
    return f"{told}: a kernel that took no time would make it {found['most_gain']:.2f} times as fast at most."


def seed_experiment_sentence() -> str:
    """The figures of the experiment that this project grew from."""
    by_hand, fused = SEED_EXPERIMENT_MS.values()
    return (
        f"The experiment this grew from, on its author's laptop: {by_hand} → {fused} ms, "
        f"{by_hand / fused:.2f} times as fast."
    )


ABLATION_NUMBERS = (
    "ms a step", "quartiles", "characters/s", "none / this", "95 % interval", "peak MiB", "first step, s",
    "pays after steps",
)  # fmt: skip
"""Numeric columns of `variant_cells`; `before` and `verdict` refer to the variant it is compared with."""


def variant_cells(variant: Row, *, added: bool) -> dict[str, str]:
    """A variant of an ablation as text, by column.

    Args:
        variant: a variant that was timed.
        added: whether it was added to the previous variant; with one left out there is no break-even.
    """
    step, peak, ratio, before = (variant[name] for name in ("step_ms", "peak_bytes", "ratio", "ratio_before"))
    return {
        "name": variant["name"],
        "ms a step": digits(step["median"]),
        "quartiles": quartiles(step),
        "characters/s": f"{variant['characters_per_s']:,.0f}",
        "none / this": "" if ratio is None else f"{ratio['value']:.3f}",
        "95 % interval": "" if ratio is None else interval(ratio),
        "before": "" if before is None else f"{before['value']:.3f}",
        "verdict": "" if before is None else before["verdict"],
        "peak MiB": "" if peak is None else digits(peak / MIB),
        "first step, s": digits(variant["first_step_seconds"]),
        "pays after steps": _break_even(variant) if added and before is not None else "",
        "answers": _likeness(variant),
    }


def _break_even(variant: Row) -> str:
    steps = variant["break_even_steps"]
    return "never" if steps is None else "at once" if steps == 0 else f"{steps:,}"


def _likeness(variant: Row) -> str:
    """How close a variant's results are to the plain loop's."""
    if variant["budget_used"] is not None:
        return f"exact, {100 * variant['budget_used']:.0f} % of the error budget"
    if variant["loss_difference"] is not None:
        return f"{variant['exactness']}: loss {variant['loss_difference']:+.4f}"
    return "–"
