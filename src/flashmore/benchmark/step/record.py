"""Steps at one or several contexts as one record."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from flashmore.benchmark.step.bench import BLOCKS, StepComparison, StepVariant, compare_steps
from flashmore.config import TrainConfig
from flashmore.errors import UsageError
from flashmore.measuring.result import make_record
from flashmore.training.resolve import resolve_device


def bench_steps(
    config: TrainConfig,
    variants: Sequence[str] | None = None,
    contexts: Sequence[int] = (),
    *,
    shrink_batch: bool = True,
    blocks: int = BLOCKS,
    say: Callable[[str], None] = lambda _: None,
    after_block: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Compare training steps at every context, the first one first.

    Args:
        contexts: values of T as in `compare_steps`; none means the data's own.
        config, variants, shrink_batch, blocks, say, after_block: as for `compare_steps`.

    Returns:
        A record of kind `step`. After Ctrl-C it has the results so far and is not `complete`.

    Raises:
        DataError, ConfigError: see `compare_steps`.
        UsageError: no variant could be timed at any context.
    """
    found: list[StepComparison] = []
    for context in contexts or (None,):
        found.append(
            compare_steps(
                config, variants, context=context, shrink_batch=shrink_batch, blocks=blocks, say=say,
                after_block=after_block,
            )
        )  # fmt: skip
        if not found[-1].complete:
            break
    complete = found[-1].complete
    if complete and not any(variant.ok for comparison in found for variant in comparison.variants):
        why = {f"{v.name}: {v.why_not}" for comparison in found for v in comparison.variants}
        valid = "other --variants, a smaller --batch-size or --lengths"
        raise UsageError("at least one variant that can be timed", "; ".join(sorted(why)), valid)
    return make_record("step", resolve_device(config.device), _body(config, found), complete=complete)


def _body(config: TrainConfig, found: Sequence[StepComparison]) -> dict[str, Any]:
    first, *further = found
    return {
        "config": config.to_json(),
        **_at_one_context(first),
        "further_contexts": [_at_one_context(comparison) for comparison in further],
        "warnings": [
            asdict(warning)
            | {"message": f"context {comparison.context:,}: " * bool(further) + warning.message}
            for comparison in found
            for warning in comparison.warnings
        ],
    }


def _at_one_context(comparison: StepComparison) -> dict[str, Any]:
    share = comparison.attention_share
    return {
        "context": comparison.context,
        "batch": comparison.batch,
        "variants": [_variant(variant) for variant in comparison.variants],
        "ratios": [between.to_json() for between in comparison.ratios],
        "attention_share": share and share.value,
        "attention_share_low": share and share.low,
        "attention_share_high": share and share.high,
        "attention_samples_ms": list(map(list, comparison.attention_samples_ms)),
        "most_gain": comparison.most_gain,
        "notes": list(comparison.notes),
    }


def _variant(variant: StepVariant) -> dict[str, Any]:
    return {
        "name": variant.name,
        "ok": variant.ok,
        "why_not": variant.why_not,
        "budget_used": variant.budget_used,
        "step_ms": variant.step_ms and asdict(variant.step_ms),
        "samples_ms": variant.samples_ms,
        "peak_bytes": variant.peak_bytes,
    }
