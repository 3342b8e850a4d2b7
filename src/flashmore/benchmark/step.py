"""What a whole training step costs under one attention backend and another: same model, data and seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flashmore.backends.names import Backend
from flashmore.measuring.measure import alternate
from flashmore.measuring.statistics import Ratio, Spread, ratio, spread
from flashmore.training.recipe import Recipe
from flashmore.training.setting import settle
from flashmore.training.trainer import Trainer

REPEATS = 10
WARMUP = 10


@dataclass(frozen=True)
class StepComparison:
    """Step times of two or more backends, measured in turn."""

    spreads_ms: dict[str, Spread]
    ratios: dict[str, Ratio]
    """For each backend after the first: how many times faster than the first it is."""
    samples_ms: dict[str, list[list[float]]]


def compare_steps(
    recipe: Recipe,
    backends: Sequence[Backend],
    *,
    blocks: int = 30,
    after_block: Callable[[int], None] = lambda _: None,
) -> StepComparison:
    """Time training steps of the recipe's Transformer under each backend, in alternating blocks.

    Args:
        recipe: data, model and training parameters, the same for all.
        backends: names; the first is what the others are compared with.
        blocks: blocks of each backend, ten steps a block.
        after_block: is told how many rounds are done.

    Raises:
        BackendUnavailable: one of the backends cannot run here.
    """
    steps = {backend: _stepper(replace(recipe, attention=backend)) for backend in backends}
    samples = alternate(steps, blocks=blocks, repeats=REPEATS, warmup=WARMUP, after_block=after_block)
    first, *others = backends
    return StepComparison(
        spreads_ms={name: spread(samples[name]) for name in backends},
        ratios={name: ratio(samples[first], samples[name]) for name in others},
        samples_ms=samples,
    )


def _stepper(recipe: Recipe) -> Callable[[], float]:
    """Make one training step a call, and wait for it."""
    setting = settle(recipe)
    trainer = Trainer(recipe, setting.config, setting.vocabulary, setting.split, setting.device)
    return lambda: trainer.advance().item()
