"""Begins runs from a config and resumes them from their folders, on one rank or several."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flashmore.config import CHANGEABLE, TrainConfig
from flashmore.errors import ConfigError, RankStopped, RunError, StorageError
from flashmore.files import INTACT, replace_file
from flashmore.parallel import Ranks, connected
from flashmore.ranks import max_restarts
from flashmore.runs import Checkpoint, Run, Settings, State, locked
from flashmore.runs.checkpoint import layout_of
from flashmore.runs.folder import is_pack, remove_unfinished
from flashmore.runs.metrics import MetricsLog
from flashmore.runs.records import convert, digest
from flashmore.runs.settings import TEACHERS, require_run, require_same, versions_here
from flashmore.specs import model_spec
from flashmore.training.corpus import Datasets, open_datasets, read_corpus
from flashmore.training.distillation import open_teachers, packs_of
from flashmore.training.fit import fit
from flashmore.training.folders import config_of, holds_run, lock_new, started_before
from flashmore.training.memory import require_memory
from flashmore.training.resolve import (
    Resolved,
    model_config_of,
    resolve_device,
    resolve_model,
    resolve_parallel,
    resolve_speed,
)
from flashmore.training.session import Session
from flashmore.training.trackers import require_installed
from flashmore.training.trainer import Trainer


@contextmanager
def begun(
    config: TrainConfig,
    out: Path | None,
    *,
    again: bool = False,
    teach: Callable[[TrainConfig, Path], Sequence[Run]] | None = None,
) -> Iterator[Session]:
    """Resolve the config and create the run's folder, or resume a run started by the same command.

    Nothing is written before all checks pass, and the folder is locked until the context ends. If torchrun
    started several processes, rank 0 does so, and the others open the folder after it.

    Args:
        config: what to train.
        out: the run's folder; None means the first unused of runs/MODEL, runs/MODEL-2, …
        again: without `out`, prefer a run below runs/ that was started by the same command.
        teach: trains the teachers of a new run, given its config, which is fitted, and its folder.

    Raises:
        DataError, ConfigError, BackendUnavailable, RunError, StorageError: see their docstrings.
    """
    with connected(config.device) as ranks:
        ranks.require_alike({**config.to_json(), "out": str(out)})
        with _on_every_rank(ranks, lambda: _begun(config, out, ranks, teach, again=again)) as session:
            yield session


@contextmanager
def resumed(path: Path, steps: int | None, changes: Mapping[str, Any] | None = None) -> Iterator[Session]:
    """Restore a run from its newest intact checkpoint.

    The folder is locked until the context ends.

    Args:
        path: the run's folder.
        steps: a new number of steps; None keeps it.
        changes: new values of options in `CHANGEABLE`; the others are those that the run was started with.

    Raises:
        RunError: no run, a damaged one, or one being trained by another process.
        ConfigError: `steps` is below the number of completed steps.
    """
    with connected(_device_of(path)) as ranks:
        ranks.require_alike({"run": str(path), "max_steps": steps, **(changes or {})})
        with _on_every_rank(ranks, lambda: _resumed(path, steps, changes or {}, ranks)) as session:
            yield session


@contextmanager
def _on_every_rank(
    ranks: Ranks, open_run: Callable[[], AbstractContextManager["_Opened"]]
) -> Iterator[Session]:
    """The session on the run that rank 0 opens, on each rank."""
    if ranks.rank:
        message = ranks.tell(None)
        if message is None:
            raise RankStopped("a run", "rank 0 could not begin one", "see its message")
        yield _opened_after(message).session(ranks)
        return
    told = False
    try:
        with open_run() as opened:
            ranks.tell(opened.message())
            told = True
            yield opened.session(ranks)
    except BaseException:
        if not told:
            ranks.tell(None)
        raise


@dataclass(frozen=True)
class _Opened:
    """A run that has been begun or resumed."""

    run: Run
    resolved: Resolved
    datasets: Datasets
    metrics: MetricsLog | None
    state: State
    trainer: Trainer | None = None
    """In this state; None to load the run's newest checkpoint."""

    def message(self) -> dict[str, Any]:
        """What rank 0 tells the others."""
        return {
            "path": str(self.run.path.absolute()),
            "digest": self.run.digest,
            "config": self.resolved.config.to_json(),
            "attention": self.resolved.model_config.attention,
            "padding_multiple": self.resolved.model_config.padding_multiple,
            "state": asdict(self.state),
        }

    def session(self, ranks: Ranks) -> Session:
        """The session, which all ranks begin together."""
        if self.trainer is not None:
            return Session(self.run, self.resolved, self.datasets, self.trainer, self.metrics)
        trainer = self.resolved.trainer(self.datasets.train, ranks)
        require_memory(trainer, advise=False)
        checkpoint = self.run.load_checkpoint(layout_of(trainer.step.state_dict()), self.state.step)
        trainer.restore(checkpoint)
        state = self.state
        if self.metrics is not None and checkpoint.state != state:  # the best weights are lost
            self.run.save_checkpoint(replace(checkpoint, state=state), self.resolved.config.keep)
        begun = (self.run, self.resolved, self.datasets, trainer, self.metrics)
        return Session(*begun, state.best_loss, state.best_step, state.train_seconds, state.unevaluated)


def _opened_after(message: dict[str, Any]) -> _Opened:
    """The run that rank 0 has opened, on another rank.

    Raises:
        RunError: this rank sees no such run, because the ranks do not share a file system.
    """
    run = Run.open(Path(message["path"]))
    if run.digest != message["digest"]:
        valid = "--out on a file system that all machines share"
        raise RunError(f"the run of rank 0 at {run.path}", "another run", valid)
    config = convert(message["config"], TrainConfig, f"the config of the run {run.path}")
    device = resolve_device(config.device)
    if config.threads_here:
        torch.set_num_threads(config.threads_here)
    changed = {name: message[name] for name in ("attention", "padding_multiple")}
    resolved = Resolved(config, replace(run.model, **changed), device, None, ())
    state = convert(message["state"], State, f"the state of {run.path}")
    return _Opened(run, resolved, open_datasets(run, config, device), None, state)


@contextmanager
def _begun(
    config: TrainConfig,
    out: Path | None,
    ranks: Ranks,
    teach: Callable[[TrainConfig, Path], Sequence[Run]] | None,
    *,
    again: bool,
) -> Iterator[_Opened]:
    require_installed(config.log_to)
    if max_restarts() and out is None and not again:
        found = "no --out, so that each restart would begin a new run"
        raise ConfigError("--out RUN or --resume auto with torchrun --max-restarts", found, "one of the two")
    goes_on = out is not None and holds_run(out)
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
    if again and out is None:
        out = started_before(asked, Path("runs"))
        goes_on = out is not None
    if out is not None and goes_on:
        require_same(Run.open(out).settings, asked, out)
        with _resumed(out, None, {name: requested[name] for name in CHANGEABLE}, ranks) as opened:
            yield opened
        return
    device = resolve_device(config.device)
    config = resolve_parallel(config, asked.model, device, ranks)
    if config.teachers and ranks.size > 1:
        valid = "train them first, then use --teacher"
        raise ConfigError("a single process for --teachers", f"{ranks.size} of torchrun", valid)
    if config.teachers and not corpus.smoothable:  # before they are trained
        found = f"{corpus.positions:,} positions and {corpus.vocab_size:,} vocabulary entries"
        raise ConfigError("a list in memory that is small enough for --teachers", found, "--teachers 0")
    teachers: Sequence[Run] = open_teachers(config, corpus.split, corpus.vocabulary)
    with ExitStack() as lock:
        folder = None
        if teach is not None and config.teachers:
            folder = lock_new(lock, config.model, out)
            teachers = teach(config, folder)
        datasets = corpus.datasets(config, device, teachers=teachers)
        resolved = resolve_speed(config, asked.model, device, datasets.train, ranks=ranks)
        resolved = replace(resolved, notes=(*corpus.notes, *reasons, *resolved.notes))
        folder = folder or lock_new(lock, config.model, out)
        packs = packs_of(teachers)
        made_from = replace(
            asked,
            config=resolved.config.to_json(),
            model=resolved.model_config,
            teachers=tuple(map(digest, packs)),
        )
        with Run.create(folder, made_from) as run:
            for name, data in zip(TEACHERS, packs, strict=False):
                replace_file(run.path / name, data)
            if corpus.text is not None:
                datasets = open_datasets(run, config, device)
            # Several ranks may share a model that does not fit on one device; all load this checkpoint.
            alone = replace(resolved, device=torch.device("cpu")) if ranks.connected else resolved
            trainer = alone.trainer(datasets.train, replace(ranks, connected=False))
            if not ranks.connected:
                require_memory(trainer)
            first = State(step=0, max_steps=config.max_steps, loss_scale=trainer.step.loss_scale)
            run.begin(Checkpoint(trainer.weights(), trainer.optimizer_state(), first))
            own = None if ranks.connected else trainer
            del trainer  # a whole model, which must not stay in memory
        with run.log_metrics(first) as metrics:
            yield _Opened(run, resolved, datasets, metrics, first, own)


@contextmanager
def _resumed(path: Path, steps: int | None, changes: Mapping[str, Any], ranks: Ranks) -> Iterator[_Opened]:
    if is_pack(path):
        raise _packed(path)
    require_run(path)
    with locked(path):
        remove_unfinished(path)
        run = Run.open(path)
        if run.settings.packed:
            raise _packed(path)
        state = run.load_state(best_lost=True)
        if steps is not None and steps < state.step:
            found = f"{steps}, but {state.step} steps are done"
            raise ConfigError("--max-steps of at least the steps done", found, f"{state.step} or more")
        resolved, datasets = _resolved_again(run, state, steps, changes, ranks)
        with run.log_metrics(state) as metrics:
            yield _Opened(run, resolved, datasets, metrics, state)


def _device_of(path: Path) -> str:
    """The device that a run asks for; `auto` if it cannot be read, of which rank 0 tells more."""
    try:
        return str(Run.open(path).config.get("device", "auto"))
    except (RunError, StorageError):
        return "auto"


def _packed(path: Path) -> RunError:
    found = "a file; a pack has neither the optimizer's state nor the metrics"
    return RunError(f"a folder with a run to resume at {path}", found, "the folder of the packed run")


def _device_here(config: TrainConfig) -> tuple[torch.device, tuple[str, ...]]:
    """The config's device, or the available substitute, with a note."""
    try:
        return resolve_device(config.device), ()
    except ConfigError as error:
        device = resolve_device("auto")
        return device, (f"on {device} instead of {config.device}: {error.found}",)


def _resolved_again(
    run: Run, state: State, steps: int | None, changes: Mapping[str, Any], ranks: Ranks
) -> tuple[Resolved, Datasets]:
    if not state.max_steps:
        valid = "flashmore generate, score, compare, page or export"
        raise RunError(
            f"a run that was trained here at {run.path}", "an imported model, without optimizer", valid
        )
    execution: dict[str, Any] = {name: run.settings.requested.get(name) for name in CHANGEABLE}
    total = state.max_steps if steps is None else steps
    config = replace(config_of(run), max_steps=total, **{**execution, **changes})
    if ranks.size == 1 and not changes.get("cpu_offload"):  # asked for when there were several
        config = replace(config, cpu_offload=False)
    device, notes = _device_here(config)
    sizes = model_config_of(config, run.model.vocab_size, run.model.block_size)
    chosen = replace(sizes, attention=run.model.attention, padding_multiple=run.model.padding_multiple)
    if chosen != run.model or (config.mode == "text") != (run.text is not None):
        raise RunError(
            f"the config of the run {run.path}", "sizes that differ from those of its model", INTACT
        )
    if model_spec(run.model.model).attends:
        config = replace(config, attention=run.model.attention)
    config = resolve_parallel(config, run.model, device, ranks)
    datasets = open_datasets(run, config, device)
    resolved = resolve_speed(config, run.model, device, datasets.train, replaceable=True, ranks=ranks)
    choice = resolved.choice
    if choice is not None and choice.backend == run.model.attention:
        choice = replace(choice, why="that of the run")
    return replace(resolved, choice=choice, notes=(*notes, *resolved.notes)), datasets
