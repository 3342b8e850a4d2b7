"""A ladder as a record."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from flashmore.benchmark.ladder import BLOCKS, SECONDS, Ladder, climb
from flashmore.benchmark.ladder_gate import STEPS
from flashmore.benchmark.ladder_rung import Rung
from flashmore.benchmark.step import RatioBetween
from flashmore.errors import UsageError
from flashmore.measuring.result import make_record
from flashmore.training.recipe import Recipe


def bench_ladder(
    recipe: Recipe,
    *,
    leave_one_out: bool = False,
    blocks: int = BLOCKS,
    seconds: float = SECONDS,
    say: Callable[[str], None] = lambda _: None,
    after_block: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure a ladder.

    Args:
        recipe, leave_one_out, blocks, seconds, say, after_block: as for `climb`.

    Returns:
        A record of kind `ladder`. After Ctrl-C it has what was measured so far and is not `complete`.

    Raises:
        DataError, RecipeError: see `climb`.
        UsageError: no rung could be timed.
    """
    ladder = climb(
        recipe, leave_one_out=leave_one_out, blocks=blocks, seconds=seconds, say=say, after_block=after_block
    )
    if ladder.complete and not any(rung.ok for rung in ladder.rungs):
        why = "; ".join(f"{rung.name}: {rung.why_not}" for rung in ladder.rungs)
        raise UsageError("at least one rung that can be timed", why, "a smaller --batch or model")
    body = _body(ladder, seconds)
    return make_record("ladder", ladder.setting.device, body, complete=ladder.complete)


def _body(ladder: Ladder, seconds: float) -> dict[str, Any]:
    return {
        "recipe": ladder.recipe.to_json(),
        "context": ladder.setting.config.context,
        "batch": ladder.recipe.batch,
        "characters_a_step": ladder.characters,
        "checked_steps": STEPS,
        "time_budget_s": seconds,
        "rungs": [_rung(rung, ladder.characters) for rung in ladder.rungs],
        "left_out_alone": [_rung(rung, ladder.characters) for rung in ladder.left_out_alone],
        "left_out": [asdict(left_out) for left_out in ladder.left_out],
        "notes": list(ladder.notes),
        "warnings": [asdict(warning) for warning in ladder.warnings],
    }


def _rung(rung: Rung, characters: float) -> dict[str, Any]:
    return {
        "name": rung.name,
        "speedups": list(rung.speedups),
        "exactness": rung.exactness,
        "ok": rung.ok,
        "why_not": rung.why_not,
        "step_ms": rung.step_ms and asdict(rung.step_ms),
        "samples_ms": rung.samples_ms,
        "characters_per_s": rung.step_ms and 1000 * characters / rung.step_ms.median,
        "ratio": _ratio(rung.ratio),
        "ratio_before": _ratio(rung.ratio_before),
        "first_step_seconds": rung.first_step_seconds,
        "break_even_steps": rung.break_even_steps,
        "peak_bytes": rung.peak_bytes,
        "budget_used": rung.budget_used,
        "loss_difference": rung.loss_difference,
    }


def _ratio(between: RatioBetween | None) -> dict[str, Any] | None:
    if between is None:
        return None
    found = between.ratio
    return {
        "of": between.of,
        "to": between.to,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "verdict": found.verdict,
    }
