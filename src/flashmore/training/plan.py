"""How a run's steps are made: its speed-ups decided, its attention measured, its trainer built."""

import time
from dataclasses import dataclass, replace

import torch

from flashmore.backends.choose import Choice
from flashmore.data.batches import Sequences
from flashmore.data.windows import Windows
from flashmore.errors import BackendUnavailable, is_out_of_memory
from flashmore.models.config import ModelConfig
from flashmore.specs import model_spec
from flashmore.speedups import ALGORITHM, CATALOGUE, Speedups
from flashmore.training.decide import decide, why_not
from flashmore.training.memory import out_of_memory, require_memory
from flashmore.training.recipe import Recipe
from flashmore.training.setting import settle_attention
from flashmore.training.trainer import REPLAYED, Trainer

PADDING_MULTIPLE = 64
"""Pad the vocabulary to a multiple of this for matmul efficiency."""
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

    if recipe.threads_here:  # before anything is measured
        torch.set_num_threads(recipe.threads_here)

    def plan(settled: Recipe, speedups: Speedups, notes: tuple[str, ...] = ()) -> Plan:
        choice = settle_attention(settled.attention, settled, config, device, compiled=speedups.compile)
        chosen = config if choice is None else replace(config, attention=choice.backend)
        if speedups.pad_vocab:
            chosen = replace(chosen, padding_multiple=PADDING_MULTIPLE)
        return Plan(settled, chosen, device, speedups, choice, notes)

    def step_ms(settled: Recipe, speedups: Speedups) -> float:
        trainer = plan(settled, speedups).trainer(data)
        require_memory(trainer)
        try:
            return _step_ms(trainer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(trainer, error) from None

    decision = decide(recipe, config, device, step_ms)
    return plan(decision.recipe, decision.speedups, decision.notes)


def what_works_here(
    recipe: Recipe, config: ModelConfig, device: torch.device
) -> tuple[Recipe, tuple[str, ...]]:
    """What a run goes on with on another machine: its speed-ups and its attention, as far as they work here.

    Only how a step is computed may change. What decides the result of a step, such as the optimizer, is left
    for `settle_speed` to refuse.

    Args:
        recipe: of the run, with nothing left open.
        config: the run's model.
        device: where it goes on.

    Returns:
        The recipe to go on with, and notes on what was left out.
    """
    names, notes = recipe.speedups, []
    for name in names:
        entry = CATALOGUE.get(name)
        if entry is None or entry.exactness == ALGORITHM:
            continue
        missing = [other for other in entry.needs if other not in names]
        why = f"it is a part of {missing[0]}" if missing else why_not(name, recipe, config, device)
        if why is not None:
            names = tuple(other for other in names if other != name)
            notes.append(f"left out {name}, which this run had: {why}")
    recipe = replace(recipe, speedups=names or ("none",))
    if model_spec(config.model).attends:
        recipe = replace(recipe, attention=config.attention)
        try:
            settle_attention(recipe.attention, recipe, config, device, compiled="compile" in names)
        except BackendUnavailable as error:
            notes.append(f"{config.attention} attention, which this run had, is left out: {error.found}")
            recipe = replace(recipe, attention="auto")
    return recipe, tuple(notes)


def _step_ms(trainer: Trainer) -> float:
    """The time of a step, the median of a few; of a replay of several, its share."""
    times_ms = []
    for _ in range(WARM_UP + TIMED):
        began, done = time.perf_counter(), trainer.done
        trainer.advance(REPLAYED).item()
        times_ms.append(1000 * (time.perf_counter() - began) / (trainer.done - done))
    return sorted(times_ms[WARM_UP:])[TIMED // 2]
