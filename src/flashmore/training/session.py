"""A trainer and the folder it saves to: made from a recipe, or brought back from the folder."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Literal

import torch

from flashmore.backends.choose import Choice
from flashmore.data.batches import Sequences, encode_items
from flashmore.data.split import Split
from flashmore.data.windows import Windows
from flashmore.errors import RecipeError, RunError, TrainingFailed
from flashmore.files import INTACT
from flashmore.runs import Checkpoint, Run, Settings, State, locked
from flashmore.runs.checkpoint import layout_of
from flashmore.runs.folder import remove_unfinished
from flashmore.runs.metrics import MetricsLog
from flashmore.runs.records import convert
from flashmore.runs.settings import is_run, require_run, require_same, versions_here
from flashmore.training.memory import require_memory, require_memory_for_items
from flashmore.training.plan import Plan, settle_speed, what_works_here
from flashmore.training.recipe import Recipe
from flashmore.training.setting import device_named, model_config, settle
from flashmore.training.text import open_text, random_windows, settle_text, windows_of
from flashmore.training.trainer import CUDA_GENERATOR, Trainer


@dataclass
class Session:
    """One training run: what is in memory, and where it is saved."""

    run: Run
    trainer: Trainer
    choice: Choice | None
    """Why this attention backend; None for a model without attention."""
    notes: tuple[str, ...]
    """What is done about speed, and why."""
    metrics: MetricsLog
    best_loss: float | None = None
    """Lowest validation loss so far, in nats a character."""
    best_step: int | None = None
    """The step that it was measured at."""
    train_seconds: float = 0.0
    """Time spent training; evaluation and saving do not count."""
    saved_at: float = field(default_factory=time.monotonic)
    """When the last checkpoint was saved, on `time.monotonic`'s clock, in seconds."""
    saved_step: int = 0
    """The step of the last checkpoint."""

    def __post_init__(self) -> None:
        self.saved_step = self.trainer.done

    @property
    def recipe(self) -> Recipe:
        """What is being trained."""
        return self.trainer.recipe

    def save(self) -> None:
        """Save the checkpoint `last`, from which `resumed` goes on bit for bit, and `best` where it is the
        best.

        Raises:
            TrainingFailed: a weight is not a finite number; the checkpoints before are still there.
            StorageError: the disk refused; the checkpoints before are still there.
        """
        weights = dict(self.trainer.model.state_dict())
        if not all(value.isfinite().all() for value in weights.values()):
            raise self.diverged("weights", "NaN or infinities")
        metrics_bytes, metrics_sha256 = self.metrics.saved()
        state = State(
            step=self.trainer.done,
            max_steps=self.recipe.max_steps,
            best_loss=self.best_loss,
            best_step=self.best_step,
            train_seconds=self.train_seconds,
            loss_scale=self.trainer.step.loss_scale,
            metrics_bytes=metrics_bytes,
            metrics_sha256=metrics_sha256,
        )
        self.run.save_checkpoint("last", Checkpoint(weights, self.trainer.optimizer_state(), state))
        if self.best_step == state.step:
            self.run.save_checkpoint("best", Checkpoint(weights, {}, state))
        self.saved_at, self.saved_step = time.monotonic(), state.step

    def diverged(self, what: str, found: str) -> TrainingFailed:
        """The message for numbers that are no longer finite."""
        step = f"{found} at step {self.trainer.done} of {self.run.path}"
        return TrainingFailed(
            f"finite {what}",
            f"{step}; its last checkpoint is of step {self.saved_step}",
            f"a lower --learning-rate than {self.recipe.learning_rate:g}, a longer --warmup-steps, "
            "--grad-clip 1, or --dtype float32",
        )

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
        return encode_items(items, self.run.vocabulary, self.run.model.block_size, self.trainer.device)


@contextmanager
def begun(recipe: Recipe, out: Path | None) -> Iterator[Session]:
    """Resolve what the recipe leaves open and make the run's folder; or go on with the run that the same
    command began.

    Nothing is written before everything fits, and the folder is locked until the context ends.

    Args:
        recipe: what to train.
        out: the run's folder; None takes the first unused of runs/MODEL, runs/MODEL-2, …

    Raises:
        DataError, RecipeError, BackendUnavailable, RunError, StorageError: see their docstrings.
    """
    goes_on = out is not None and _is_run(out)
    device, asked = _settings(recipe)
    if out is not None and goes_on:
        require_same(Run.open(out).settings, asked, out)
        with resumed(out, None) as session:
            yield session
        return
    plan = settle_speed(recipe, asked.model, device, _example(asked, device))
    with ExitStack() as lock:
        folder = _lock_new(lock, recipe.model, out)
        made_from = replace(asked, recipe=plan.recipe.to_json(), model=plan.config)
        with Run.create(folder, made_from) as run:
            trainer = plan.trainer(_training_data(run, device))
            require_memory(trainer)
            weights = dict(trainer.model.state_dict())
            first = State(step=0, max_steps=recipe.max_steps, loss_scale=trainer.step.loss_scale)
            run.begin(Checkpoint(weights, trainer.optimizer_state(), first))
        with run.log_metrics(first) as metrics:
            yield Session(run, trainer, plan.choice, plan.notes, metrics)


@contextmanager
def resumed(path: Path, steps: int | None) -> Iterator[Session]:
    """Bring a run back from its checkpoint `last`; only the number of steps may change.

    The folder is locked until the context ends.

    Raises:
        RunError: no run, a damaged one, or one that another process trains.
        RecipeError: `steps` is below the number of steps that are done.
    """
    require_run(path)
    with locked(path):
        remove_unfinished(path)
        run = Run.open(path)
        state = run.load_state("last")
        if steps is not None and steps < state.step:
            found = f"{steps}, and {state.step} steps are done"
            raise RecipeError("--max-steps to go on to", found, f"{state.step} or more")
        plan, trainer = _restored(run, state.max_steps if steps is None else steps)
        with run.log_metrics(state) as metrics:
            yield Session(
                run,
                trainer,
                plan.choice,
                plan.notes,
                metrics,
                state.best_loss,
                state.best_step,
                state.train_seconds,
            )


def recipe_of(run: Run) -> Recipe:
    """The recipe of a run, with nothing left open.

    Raises:
        RunError: it is none of this version of flashmore, a value is out of range, or it is another recipe
            than was asked for.
    """
    wanted = f"the recipe of the run {run.path}"
    recipe = convert(run.recipe, Recipe, wanted)
    asked = run.settings.requested
    settled = [name for name, value in run.recipe.items() if asked.get(name) != value]
    odd = [name for name in settled if name != "speedups" and asked.get(name) != "auto"]
    if odd:
        raise RunError(wanted, f"another {', '.join(odd)} than was asked for", INTACT)
    return recipe


def unused_folder(model: str, parent: Path) -> Path:
    """The first of PARENT/MODEL, PARENT/MODEL-2, … that holds neither a run nor anything else."""
    return next(_unused_folders(model, parent))


def _unused_folders(model: str, parent: Path) -> Iterator[Path]:
    for number in count(1):
        path = parent / (model if number == 1 else f"{model}-{number}")
        try:
            if not is_run(path) and not path.is_symlink():
                yield path
        except RunError:  # something else is there
            continue


def _is_run(path: Path) -> bool:
    """As `is_run`; a link that leads nowhere is no new folder either."""
    found = is_run(path)
    if not found and path.is_symlink() and not path.exists():
        raise RunError(f"a new or empty folder at {path}", "a link that leads nowhere", "another path")
    return found


def _lock_new(lock: ExitStack, model: str, out: Path | None) -> Path:
    """Lock the folder of a new run; where it may be chosen, one in which no other process is making a run."""
    for path in [out] if out is not None else _unused_folders(model, Path("runs")):
        try:
            lock.enter_context(locked(path))
        except RunError:
            if out is not None:
                raise
        else:
            return path
    raise AssertionError("there are endlessly many folders")


def _settings(recipe: Recipe) -> tuple[torch.device, Settings]:
    """Read the data: the device, and what a run is made from, with the speed-ups and the attention still
    open."""
    asked, versions = recipe.to_json(), versions_here()
    if recipe.mode == "text":
        text = settle_text(recipe)
        empty = Split((), (), (), None)
        return text.device, Settings(asked, {}, text.config, text.vocabulary, empty, text.text, versions)
    items = settle(recipe)
    return items.device, Settings(asked, {}, items.config, items.vocabulary, items.split, None, versions)


def _example(asked: Settings, device: torch.device) -> Sequences | Windows:
    """Data that steps may be timed on before the run's folder is there."""
    if asked.text is not None:
        return random_windows(asked.model, device)
    require_memory_for_items(len(asked.split.train), asked.model.block_size)
    return encode_items(asked.split.train, asked.vocabulary, asked.model.block_size, device)


def _training_data(run: Run, device: torch.device) -> Sequences | Windows:
    if run.text is not None:
        return open_text(run, device)
    if not run.split.train:
        raise RunError(f"items to train on in {run.path}", "none", INTACT)
    require_memory_for_items(len(run.split.train), run.model.block_size)
    return encode_items(run.split.train, run.vocabulary, run.model.block_size, device)


def _device_here(recipe: Recipe) -> tuple[torch.device, tuple[str, ...]]:
    """The device that the recipe names, or what is here in its place, with a note."""
    try:
        return device_named(recipe.device), ()
    except RecipeError as error:
        device = device_named("auto")
        return device, (f"on {device} instead of {recipe.device}: {error.found}",)


def _restored(run: Run, steps: int) -> tuple[Plan, Trainer]:
    recipe = replace(recipe_of(run), max_steps=steps)
    device, notes = _device_here(recipe)
    sizes = model_config(recipe, run.model.vocab_size, run.model.block_size)
    chosen = replace(sizes, attention=run.model.attention, padding_multiple=run.model.padding_multiple)
    if chosen != run.model or (recipe.mode == "text") != (run.text is not None):
        raise RunError(f"the recipe of the run {run.path}", "other sizes than its model has", INTACT)
    recipe, left_out = what_works_here(recipe, run.model, device)
    data = _training_data(run, device)
    plan = settle_speed(recipe, run.model, device, data)
    plan = replace(plan, notes=(*notes, *left_out, *plan.notes))
    trainer = plan.trainer(data)
    require_memory(trainer, advise=False)
    wanted = dict(layout_of(trainer.optimizer_state()))
    wanted.pop(CUDA_GENERATOR, None)
    checkpoint = run.load_checkpoint(wanted, {CUDA_GENERATOR: ((16,), torch.uint8)})
    run.restore(trainer.model, checkpoint.weights)
    trainer.restore(checkpoint)
    return plan, trainer
