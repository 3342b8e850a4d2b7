"""A ladder as a record."""

from dataclasses import asdict
from typing import Any

from flashmore.benchmark.ladder.bench import Ladder
from flashmore.benchmark.ladder.gate import STEPS
from flashmore.benchmark.ladder.rung import Rung
from flashmore.errors import UsageError
from flashmore.measuring.result import make_record


def ladder_record(ladder: Ladder) -> dict[str, Any]:
    """A record of kind `ladder`; after Ctrl-C it has what was measured so far and is not `complete`.

    Raises:
        UsageError: no rung could be timed.
    """
    if ladder.complete and not any(rung.ok for rung in ladder.rungs):
        why = "; ".join(f"{rung.name}: {rung.why_not}" for rung in ladder.rungs)
        raise UsageError("at least one rung that can be timed", why, "a smaller --batch or model")
    return make_record("ladder", ladder.setting.device, _body(ladder), complete=ladder.complete)


def _body(ladder: Ladder) -> dict[str, Any]:
    return {
        "recipe": ladder.recipe.to_json(),
        "context": ladder.setting.config.context,
        "batch": ladder.recipe.batch,
        "characters_a_step": ladder.characters,
        "checked_steps": STEPS,
        "time_budget_s": ladder.seconds,
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
        "ratio": rung.ratio and rung.ratio.to_json(),
        "ratio_before": rung.ratio_before and rung.ratio_before.to_json(),
        "first_step_seconds": rung.first_step_seconds,
        "break_even_steps": rung.break_even_steps,
        "peak_bytes": rung.peak_bytes,
        "budget_used": rung.budget_used,
        "loss_difference": rung.loss_difference,
    }
