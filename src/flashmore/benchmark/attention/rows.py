"""Outcomes of `bench attention` as rows of a record, and the crossover length."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flashmore.benchmark.attention.flops import PASSES, Pass, attention_flops
from flashmore.benchmark.attention.passes import Passes
from flashmore.benchmark.attention.plan import Shape
from flashmore.measuring.accuracy import Judgement
from flashmore.measuring.statistics import Ratio, spread
from flashmore.measuring.warnings import MeasurementWarning

JUDGED: dict[Pass, tuple[str, ...]] = {
    "forward": ("out",),
    "backward": ("dq", "dk", "dv"),
    "both": ("out", "dq", "dk", "dv"),
}
MORE_TIME = "give it more time (--seconds) or fewer lengths, and let it run to the end"
INTERRUPTED = "interrupted before it was timed"


@dataclass
class Outcome:
    """The outcome for one backend on one shape."""

    backend: str
    why_not: str | None = None
    judgements: tuple[Judgement, ...] = ()
    cold_ms: dict[Pass, float] = field(default_factory=dict)
    peaks: dict[Pass, int | None] = field(default_factory=dict)
    passes: Passes | None = None


def crossover(ratios: Mapping[int, Ratio]) -> int | None:
    """The length from which on fused attention is faster, there and at every longer length measured.

    Args:
        ratios: by length: time of `manual` over time of the best fused backend, forward and backward.

    Returns:
        The length, or None if fused attention is not faster at the longest one.
    """
    found = None
    for T in sorted(ratios, reverse=True):
        if ratios[T].verdict != "faster":
            break
        found = T
    return found


def warning_over(doubts: Mapping[int, MeasurementWarning]) -> dict[str, str]:
    """One warning for all affected lengths, with the message of the longest."""
    longest = doubts[max(doubts)]
    lengths = ", ".join(f"{T:,}" for T in sorted(doubts))
    advice = MORE_TIME if longest.code == "too few samples" else longest.advice
    return {"code": longest.code, "message": f"at T = {lengths}: {longest.message}", "advice": advice}


def sizes(shape: Shape) -> dict[str, Any]:
    """The setting of a shape as in a record: everything except T."""
    return {name: value for name, value in asdict(shape).items() if name != "T"}


def rows_of(outcome: Outcome, shape: Shape, checked: int) -> list[dict[str, Any]]:
    """One row per pass, as described by the record's schema."""
    passes = outcome.passes if outcome.why_not is None else None
    timed = passes is not None and bool(passes.blocks)
    rows = []
    for which in PASSES:
        judged = [j for j in outcome.judgements if j.name in JUDGED[which]]
        worst = max(judged, key=lambda j: j.error / j.budget, default=None)
        samples = passes.samples_ms(which) if passes is not None else []
        time_ms = spread(samples) if timed else None
        flops = attention_flops(shape.B, shape.H, shape.T, shape.T, shape.D, causal=shape.causal, which=which)
        rows.append(
            {"backend": outcome.backend, "T": shape.T}
            | sizes(shape)
            | {
                "pass": which,
                "ok": timed,
                "why_not": outcome.why_not or (None if timed else INTERRUPTED),
                "time_ms": None if time_ms is None else asdict(time_ms),
                "cold_ms": outcome.cold_ms.get(which) if time_ms else None,
                "samples_ms": samples,
                "tflop_per_s": flops / time_ms.median / 1e9 if time_ms else None,
                "peak_bytes": outcome.peaks.get(which) if time_ms else None,
                "error": worst.error if worst and worst.error < float("inf") else None,
                "error_budget": worst.budget if worst else None,
                "checked_pairs": checked if worst else None,
            }
        )
    return rows
