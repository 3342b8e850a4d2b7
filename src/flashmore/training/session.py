"""A trainer and the folder it saves to, created from a config or restored from the folder."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path

import torch

from flashmore.config import OPEN, TrainConfig
from flashmore.errors import ConfigError, RunError, TrainingFailed
from flashmore.files import INTACT
from flashmore.runs import Checkpoint, Run, Settings, State, locked
from flashmore.runs.checkpoint import layout_of
from flashmore.runs.folder import is_pack, remove_unfinished
from flashmore.runs.metrics import MetricsLog
from flashmore.runs.records import convert
from flashmore.runs.settings import is_run, require_run, require_same, versions_here
from flashmore.specs import model_spec
from flashmore.training.corpus import Parts, open_parts, read_corpus
from flashmore.training.fit import fit
from flashmore.training.memory import require_memory
from flashmore.training.resolve import Resolved, model_config_of, resolve_device, resolve_model, resolve_speed
from flashmore.training.trackers import require_installed
from flashmore.training.trainer import CUDA_GENERATOR, Trainer


@dataclass
class Session:
    """One training run: its state in memory and its folder."""

    run: Run
    resolved: Resolved
    parts: Parts
    """The data; the trainer has the training part."""
    trainer: Trainer
    metrics: MetricsLog
    best_loss: float | None = None
    """Lowest validation loss so far, in nats per character."""
    best_step: int | None = None
    """The step at which it was measured."""
    train_seconds: float = 0.0
    """Training time, excluding evaluation and saving."""
    saved_at: float = field(default_factory=time.monotonic)
    """`time.monotonic` of the last checkpoint, in seconds."""
    saved_step: int = 0
    """The step of the last checkpoint."""

    def __post_init__(self) -> None:
        self.saved_step = self.trainer.done

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has not improved for `patience` evaluations."""
        waited = self.config.patience * self.config.eval_interval
        return bool(waited) and self.best_step is not None and self.trainer.done - self.best_step >= waited

    @property
    def finished(self) -> bool:
        """Whether no more steps are to be made."""
        return self.trainer.done >= self.config.max_steps or self.stopped_early

    @property
    def config(self) -> TrainConfig:
        """The resolved config."""
        return self.resolved.config

    def save(self) -> None:
        """Save the checkpoint `last`, from which `resumed` continues bit for bit; also as `best` if it is.

        Raises:
            TrainingFailed: a weight is not finite; the previous checkpoints are kept.
            StorageError: writing failed; the previous checkpoints are kept.
        """
        weights = dict(self.trainer.model.state_dict())
        if not all(value.isfinite().all() for value in weights.values()):
            raise self.diverged("weights", "NaN or infinities")
        metrics_bytes, metrics_sha256 = self.metrics.saved()
        state = State(
            step=self.trainer.done,
            max_steps=self.config.max_steps,
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
        """The error for values that are no longer finite."""
        step = f"{found} at step {self.trainer.done} of {self.run.path}"
        return TrainingFailed(
            f"finite {what}",
            f"{step}; the last checkpoint is from step {self.saved_step}",
            f"a lower --learning-rate than {self.config.learning_rate:g}, a longer --warmup-steps, "
            "--grad-clip 1, or --dtype float32",
        )


@contextmanager
def begun(config: TrainConfig, out: Path | None) -> Iterator[Session]:
    """Resolve the config and create the run's folder, or resume a run started by the same command.

    Nothing is written before all checks pass, and the folder is locked until the context ends.

    Args:
        config: what to train.
        out: the run's folder; None means the first unused of runs/MODEL, runs/MODEL-2, …

    Raises:
        DataError, ConfigError, BackendUnavailable, RunError, StorageError: see their docstrings.
    """
    require_installed(config.log_to)
    goes_on = out is not None and _is_run(out)
    corpus = read_corpus(config)
    requested = config.to_json()
    config, reasons = fit(config, corpus)
    asked = Settings(
        requested=requested,
        config={},
        model=resolve_model(config, corpus),
        vocabulary=corpus.vocabulary,
        split=corpus.split,
        text=corpus.text,
        stored=corpus.stored,
        versions=versions_here(),
    )
    if out is not None and goes_on:
        require_same(Run.open(out).settings, asked, out)
        with resumed(out, None) as session:
            yield session
        return
    device = resolve_device(config.device)
    parts = corpus.parts(config, device)
    resolved = resolve_speed(config, asked.model, device, parts.train)
    resolved = replace(resolved, notes=(*corpus.notes, *reasons, *resolved.notes))
    with ExitStack() as lock:
        folder = _lock_new(lock, config.model, out)
        made_from = replace(asked, config=resolved.config.to_json(), model=resolved.model_config)
        with Run.create(folder, made_from) as run:
            if corpus.text is not None:
                parts = open_parts(run, config, device)
            trainer = resolved.trainer(parts.train)
            require_memory(trainer)
            weights = dict(trainer.model.state_dict())
            first = State(step=0, max_steps=config.max_steps, loss_scale=trainer.step.loss_scale)
            run.begin(Checkpoint(weights, trainer.optimizer_state(), first))
        with run.log_metrics(first) as metrics:
            yield Session(run, resolved, parts, trainer, metrics)


@contextmanager
def resumed(path: Path, steps: int | None) -> Iterator[Session]:
    """Restore a run from its checkpoint `last`; only the number of steps may change.

    The folder is locked until the context ends.

    Raises:
        RunError: no run, a damaged one, or one being trained by another process.
        ConfigError: `steps` is below the number of completed steps.
    """
    if is_pack(path):
        raise _packed(path)
    require_run(path)
    with locked(path):
        remove_unfinished(path)
        run = Run.open(path)
        if run.settings.packed:
            raise _packed(path)
        state = run.load_state("last")
        if steps is not None and steps < state.step:
            found = f"{steps}, but {state.step} steps are done"
            raise ConfigError("--max-steps of at least the steps done", found, f"{state.step} or more")
        resolved, parts, trainer = _restored(run, state.max_steps if steps is None else steps)
        with run.log_metrics(state) as metrics:
            best = (state.best_loss, state.best_step)
            yield Session(run, resolved, parts, trainer, metrics, *best, state.train_seconds)


def _packed(path: Path) -> RunError:
    found = "a file; a pack has neither the optimizer's state nor the metrics"
    return RunError(f"a folder with a run to resume at {path}", found, "the folder of the packed run")


def config_of(run: Run) -> TrainConfig:
    """The resolved config of a run.

    Raises:
        RunError: it is not a config of this flashmore version, a value is out of range, or it does not match
            the requested config.
    """
    wanted = f"the config of the run {run.path}"
    names = {field.name for field in fields(TrainConfig)}
    if odd := sorted(names ^ run.config.keys()):
        made_by = f"flashmore {run.settings.versions.get('flashmore', 'of another version')}"
        raise RunError(
            wanted, f"missing or unknown options: {', '.join(odd[:8])}", f"{made_by}, which made the run"
        )
    config = convert(run.config, TrainConfig, wanted)
    if odd := [name for name in OPEN if getattr(config, name) is None]:
        raise RunError(wanted, f"no value of {', '.join(odd)}", INTACT)
    asked = run.settings.requested
    free = {"speedups", *(name for name in OPEN if asked.get(name) is None)}
    odd = [name for name, value in run.config.items() if name not in free and asked.get(name) != value]
    if odd:
        raise RunError(wanted, f"values of {', '.join(odd)} that were not requested", INTACT)
    return config


def unused_folder(model: str, parent: Path) -> Path:
    """The first of PARENT/MODEL, PARENT/MODEL-2, … that holds neither a run nor anything else."""
    return next(_unused_folders(model, parent))


def _unused_folders(model: str, parent: Path) -> Iterator[Path]:
    for number in count(1):
        path = parent / (model if number == 1 else f"{model}-{number}")
        try:
            if not is_run(path) and not path.is_symlink():
                yield path
        except RunError:  # occupied by something else
            continue


def _is_run(path: Path) -> bool:
    """As `is_run`; a dangling link is not a new folder either."""
    found = is_run(path)
    if not found and path.is_symlink() and not path.exists():
        raise RunError(f"a new or empty folder at {path}", "a broken link", "another path")
    return found


def _lock_new(lock: ExitStack, model: str, out: Path | None) -> Path:
    """Lock the folder of a new run; without `out`, one in which no other process is creating a run."""
    for path in [out] if out is not None else _unused_folders(model, Path("runs")):
        try:
            lock.enter_context(locked(path))
        except RunError:
            if out is not None:
                raise
        else:
            return path
    raise AssertionError("there are endlessly many folders")


def _device_here(config: TrainConfig) -> tuple[torch.device, tuple[str, ...]]:
    """The config's device, or the available substitute, with a note."""
    try:
        return resolve_device(config.device), ()
    except ConfigError as error:
        device = resolve_device("auto")
        return device, (f"on {device} instead of {config.device}: {error.found}",)


def _restored(run: Run, steps: int) -> tuple[Resolved, Parts, Trainer]:
    if not run.load_state("last").max_steps:
        valid = "flashmore generate, score, compare, page or export"
        raise RunError(
            f"a run that was trained here at {run.path}", "an imported model, without optimizer", valid
        )
    config = replace(config_of(run), max_steps=steps)
    device, notes = _device_here(config)
    sizes = model_config_of(config, run.model.vocab_size, run.model.block_size)
    chosen = replace(sizes, attention=run.model.attention, padding_multiple=run.model.padding_multiple)
    if chosen != run.model or (config.mode == "text") != (run.text is not None):
        raise RunError(
            f"the config of the run {run.path}", "sizes that differ from those of its model", INTACT
        )
    if model_spec(run.model.model).attends:
        config = replace(config, attention=run.model.attention)
    parts = open_parts(run, config, device)
    resolved = resolve_speed(config, run.model, device, parts.train, replaceable=True)
    resolved = replace(resolved, notes=(*notes, *resolved.notes))
    trainer = resolved.trainer(parts.train)
    require_memory(trainer, advise=False)
    wanted = dict(layout_of(trainer.optimizer_state()))
    wanted.pop(CUDA_GENERATOR, None)
    checkpoint = run.load_checkpoint(wanted, {CUDA_GENERATOR: ((16,), torch.uint8)})
    run.restore(trainer.model, checkpoint.weights)
    trainer.restore(checkpoint)
    return resolved, parts, trainer
