"""An ablation as a record."""

from dataclasses import asdict
from typing import Any

from flashmore.benchmark.ablation.bench import Ablation
from flashmore.benchmark.ablation.gate import STEPS
from flashmore.benchmark.ablation.variant import Variant
from flashmore.errors import UsageError
from flashmore.measuring.result import make_record


def ablation_record(ablation: Ablation) -> dict[str, Any]:
    """A record of kind `ablation`; after Ctrl-C it has the results so far and is not `complete`.

    Raises:
        UsageError: no variant could be timed.
    """
    if ablation.complete and not any(variant.ok for variant in ablation.variants):
        why = "; ".join(f"{variant.name}: {variant.why_not}" for variant in ablation.variants)
        raise UsageError("at least one variant that can be timed", why, "a smaller --batch-size or model")
    return make_record("ablation", ablation.device, _body(ablation), complete=ablation.complete)


def _body(ablation: Ablation) -> dict[str, Any]:
    return {
        "config": ablation.config.to_json(),
        "context": ablation.block_size,
        "batch": ablation.config.batch_size,
        "characters_a_step": ablation.characters,
        "checked_steps": STEPS,
        "time_budget_s": ablation.seconds,
        "variants": [_variant(variant, ablation.characters) for variant in ablation.variants],
        "left_out_alone": [_variant(variant, ablation.characters) for variant in ablation.left_out_alone],
        "left_out": [asdict(left_out) for left_out in ablation.left_out],
        "notes": list(ablation.notes),
        "warnings": [asdict(warning) for warning in ablation.warnings],
    }


def _variant(variant: Variant, characters: float) -> dict[str, Any]:
    return {
        "name": variant.name,
        "speedups": list(variant.speedups),
        "exactness": variant.exactness,
        "ok": variant.ok,
        "why_not": variant.why_not,
        "step_ms": variant.step_ms and asdict(variant.step_ms),
        "samples_ms": variant.samples_ms,
        "characters_per_s": variant.step_ms and 1000 * characters / variant.step_ms.median,
        "ratio": variant.ratio and variant.ratio.to_json(),
        "ratio_before": variant.ratio_before and variant.ratio_before.to_json(),
        "first_step_seconds": variant.first_step_seconds,
        "break_even_steps": variant.break_even_steps,
        "peak_bytes": variant.peak_bytes,
        "budget_used": variant.budget_used,
        "loss_difference": variant.loss_difference,
    }
