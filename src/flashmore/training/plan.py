"""How a run's steps are made: its speed-ups decided, its attention measured, its trainer built."""

import time
from dataclasses import dataclass, replace

import torch

from flashmore.backends.choose import Choice
from flashmore.data.batches import Sequences
from flashmore.data.windows import Windows
from flashmore.errors import is_out_of_memory
from flashmore.models.config import ModelConfig
from flashmore.speedups import Speedups
from flashmore.training.decide import decide
from flashmore.training.recipe import Recipe
from flashmore.training.room import out_of_room, require_room
from flashmore.training.setting import settle_attention
from flashmore.training.trainer import REPLAYED, Trainer

VOCABULARY_MULTIPLE = 64
"""Columns in which matrix kernels like their work."""
WARM_UP, TIMED = 3, 8
"""Steps that show how long one takes without compiling."""


@dataclass(frozen=True)
class Plan:
    """Everything a trainer is made of but its data."""

    recipe: Recipe
    """With nothing left open."""
    config: ModelConfig
    """`attention` names a backend that runs here."""
    device: torch.device
    speedups: Speedups
    choice: Choice | None
    """Why this attention backend; None for a model without attention."""
    notes: tuple[str, ...]
    """What is done about speed, and why."""

    def trainer(self, data: Sequences | Windows) -> Trainer:
        """Build the trainer."""
        return Trainer(self.recipe, self.config, data, self.device, self.speedups)


def settle_speed(
    recipe: Recipe, config: ModelConfig, device: torch.device, data: Sequences | Windows
) -> Plan:
    """Decide the speed-ups and the attention backend of a run.

    Args:
        recipe: what was asked for.
        config: the model's sizes.
        device: where it trains.
        data: what a few steps are timed on, where a decision needs their time.

    Raises:
        RecipeError: a speed-up asked for by name that cannot work here.
        BackendUnavailable: the attention backend asked for cannot run here.
        TrainingFailed: a step does not fit into memory.
    """

    def plan(settled: Recipe, speedups: Speedups, notes: tuple[str, ...] = ()) -> Plan:
        choice = settle_attention(settled.attention, settled, config, device, compiled=speedups.compile)
        chosen = config if choice is None else replace(config, attention=choice.backend)
        if speedups.vocabulary:
            chosen = replace(chosen, vocabulary_multiple=VOCABULARY_MULTIPLE)
        return Plan(settled, chosen, device, speedups, choice, notes)

    def step_ms(settled: Recipe, speedups: Speedups) -> float:
        trainer = plan(settled, speedups).trainer(data)
        require_room(trainer)
        try:
            return _step_ms(trainer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_room(trainer, error) from None

    decision = decide(recipe, config, device, step_ms)
    return plan(decision.recipe, decision.speedups, decision.notes)


def _step_ms(trainer: Trainer) -> float:
    """The time of a step, the median of a few; of a replay of several, its share."""
    times_ms = []
    for _ in range(WARM_UP + TIMED):
        began, done = time.perf_counter(), trainer.done
        trainer.advance(REPLAYED).item()
        times_ms.append(1000 * (time.perf_counter() - began) / (trainer.done - done))
    return sorted(times_ms[WARM_UP:])[TIMED // 2]
