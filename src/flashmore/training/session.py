"""A trainer and the folder it saves to: made from a recipe, or brought back from the folder."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flashmore.backends.choose import Choice
from flashmore.data.batches import Sequences, encode_items
from flashmore.data.split import Split
from flashmore.data.windows import Windows
from flashmore.errors import RecipeError
from flashmore.runs import Checkpoint, Run
from flashmore.training.plan import settle_speed
from flashmore.training.recipe import Recipe
from flashmore.training.setting import device_named, settle
from flashmore.training.text import open_text, random_windows, settle_text, windows_of
from flashmore.training.trainer import Trainer


@dataclass
class Session:
    """One training run: what is in memory, and where it is saved."""

    run: Run
    trainer: Trainer
    choice: Choice | None
    """Why this attention backend; None for a model without attention."""
    notes: tuple[str, ...]
    """What is done about speed, and why."""
    best_loss: float | None = None
    """Lowest validation loss so far, in nats a character."""
    train_seconds: float = 0.0
    """Time spent training, evaluation and saving apart."""

    @property
    def recipe(self) -> Recipe:
        """What is being trained."""
        return self.trainer.recipe

    def checkpoint(self) -> Checkpoint:
        """A snapshot from which `reopen` goes on bit for bit."""
        state = {
            "step": self.trainer.done,
            "steps": self.recipe.steps,
            "best_loss": self.best_loss,
            "train_seconds": self.train_seconds,
        }
        return Checkpoint(dict(self.trainer.model.state_dict()), self.trainer.optimizer_state(), state)

    def part(self, name: Literal["train", "validation", "test"]) -> Sequences | Windows | None:
        """One part of the data for this model and device; None where it holds nothing."""
        data = self.trainer.data
        if self.run.text is not None and isinstance(data, Windows):
            return windows_of(self.run, data.ids, name, self.trainer.device)
        return self.encode(getattr(self.run.split, name))

    def encode(self, items: tuple[str, ...]) -> Sequences | None:
        """Items for this model and device; None where there are none."""
        if not items:
            return None
        return encode_items(items, self.run.vocabulary, self.run.model.context, self.trainer.device)


def start(recipe: Recipe, out: Path | None) -> Session:
    """Settle what the recipe leaves open, then make the run's folder: nothing is written before all fits.

    Raises:
        DataError, RecipeError, BackendUnavailable, RunError, StorageError: see their docstrings.
    """
    if recipe.mode == "text":
        return _start_on_text(recipe, out)
    setting = settle(recipe)
    data = encode_items(setting.split.train, setting.vocabulary, setting.config.context, setting.device)
    plan = settle_speed(recipe, setting.config, setting.device, data)
    trainer = plan.trainer(data)
    folder = out or unused_folder(recipe.model, Path("runs"))
    run = Run.create(folder, plan.recipe.to_json(), plan.config, setting.vocabulary, setting.split)
    return Session(run, trainer, plan.choice, plan.notes)


def _start_on_text(recipe: Recipe, out: Path | None) -> Session:
    """The same for one long text, whose ids are written into the run's folder."""
    setting = settle_text(recipe)
    example = random_windows(setting.config, setting.device)
    plan = settle_speed(recipe, setting.config, setting.device, example)
    folder = out or unused_folder(recipe.model, Path("runs"))
    split = Split((), (), (), None)
    run = Run.create(folder, plan.recipe.to_json(), plan.config, setting.vocabulary, split, setting.text)
    try:
        trainer = plan.trainer(open_text(run, setting.device))
    except BaseException:  # a full disk, Ctrl-C: a run without its ids is none
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return Session(run, trainer, plan.choice, plan.notes)


def reopen(path: Path, steps: int | None) -> Session:
    """Bring a run back from its `last` checkpoint; only the number of steps may change.

    Raises:
        RunError: no run, or a damaged one.
        RecipeError: `steps` is below the number of steps that are done.
    """
    run = Run.open(path)
    checkpoint = run.load_checkpoint("last")
    state = checkpoint.state
    done = state["step"]
    if steps is not None and steps < done:
        raise RecipeError("--steps to go on to", f"{steps}, and {done} steps are done", f"{done} or more")
    recipe = replace(Recipe.from_json(run.recipe), steps=steps or state["steps"])
    device = device_named(recipe.device)
    data = (
        encode_items(run.split.train, run.vocabulary, run.model.context, device)
        if run.text is None
        else open_text(run, device)
    )
    recipe = recipe if run.model.model != "transformer" else replace(recipe, attention=run.model.attention)  # type: ignore[arg-type]
    plan = settle_speed(recipe, run.model, device, data)
    trainer = plan.trainer(data)
    run.restore(trainer.model, checkpoint)
    trainer.load_optimizer_state(checkpoint.optimizer, done)
    run.truncate_metrics(done)
    return Session(run, trainer, plan.choice, plan.notes, state["best_loss"], state["train_seconds"])


def unused_folder(model: str, parent: Path) -> Path:
    """The first of PARENT/MODEL, PARENT/MODEL-2, … that does not exist."""
    number = 1
    while (path := parent / (model if number == 1 else f"{model}-{number}")).exists():
        number += 1
    return path
