"""The training loop: steps, evaluation, checkpoints, and a result at the end."""

import shlex
import statistics
import time
from pathlib import Path
from typing import Any

from flashmore.config import CHANGEABLE, TrainConfig
from flashmore.errors import (
    ConfigError,
    FlashmoreError,
    Interrupted,
    StorageError,
    is_of_the_compiler,
    is_out_of_memory,
)
from flashmore.generation.sample import samples
from flashmore.models.ngram import best_ngram
from flashmore.models.registry import count_parameters
from flashmore.parallel import Requests
from flashmore.runs import Run, Unevaluated
from flashmore.terminal import say
from flashmore.training.dataset import Dataset
from flashmore.training.distillation import teacher_config
from flashmore.training.folders import folder_of_teacher
from flashmore.training.memory import out_of_memory
from flashmore.training.result import NGRAM_ITEMS, TrainResult, result_of
from flashmore.training.session import Session
from flashmore.training.signals import name_of, stop_signals
from flashmore.training.starting import begun, resumed
from flashmore.training.trackers import Trackers

REPEAT = "Repeat the command"
"""How to go on after a teacher was interrupted."""
RECENT = 20
"""Number of log intervals over which the progress line shows the median."""


class Observer:
    """Receives training events, and ignores them; `flashmore.training.progress` displays them."""

    def started(self, session: Session) -> None:
        """The run is set up and starts at step `session.trainer.done`."""

    def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
        """`step` updates are done; `loss` is that of the last batch before its update."""

    def evaluated(self, step: int, val_loss: float | None, is_best: bool) -> None:
        """The validation part was evaluated after `step` updates; `val_loss` is None where there is none."""

    def stopped_early(self, step: int, best_step: int) -> None:
        """Training ends after `step` updates: no evaluation since `best_step` has been better."""


def train(
    config: TrainConfig | None = None,
    out: Path | str | None = None,
    observer: Observer | None = None,
    *,
    again: bool = False,
) -> TrainResult:
    """Train a model and save it in a run's folder.

    Args:
        config: what to train; None means a Transformer on the built-in names.
        out: the run's folder: new, empty, or holding an unfinished run of the same config, which is resumed.
            None means the first unused of runs/MODEL, runs/MODEL-2, …
        observer: receives training events, on every rank; None means no output.
        again: without `out`, resume the newest unfinished run below runs/ of the same config and data; if all
            are finished, return the result of the newest.

    Raises:
        DataError, ConfigError, BackendUnavailable, RunError: before anything is written.
        TrainingFailed: the loss became non-finite; the last checkpoint is kept.
        Interrupted: Ctrl-C; the run is saved, and `resume` continues it.
        StorageError: a file could not be written; the previous checkpoint is kept.
    """
    config, path = config or TrainConfig(), None if out is None else Path(out)

    def teach(fitted: TrainConfig, folder: Path) -> list[Run]:
        """Train the teachers beside the run, or go on where an earlier command was interrupted."""
        named = folder if folder.name not in ("", "..") else folder.resolve()
        teachers = []
        for number in range(1, fitted.teachers + 1):
            say(f"teacher {number} of {fitted.teachers}")
            other = teacher_config(config, number, fitted.max_steps)
            try:
                with begun(other, folder_of_teacher(named, number)) as session:
                    teachers.append(Run.open(Path(_run_to_the_end(session, observer).run)))
            except Interrupted as error:
                where = "" if path is not None else f" with --out {shlex.quote(str(folder))}"
                raise Interrupted(error.wanted, error.found, f"{REPEAT}{where} to go on.") from None
        return teachers

    with begun(config, path, again=again, teach=teach) as session:
        if again and session.finished and session.ranks.rank == 0:
            longer = f"to train it longer: {session.run.resume_command()} --max-steps N"
            anew = "to train anew: omit --resume auto, or use another --out"
            say(f"{session.run.path} is finished; {longer}; {anew}")
        return _run_to_the_end(session, observer)


def resume(
    path: Path | str, steps: int | None = None, observer: Observer | None = None, **changes: Any
) -> TrainResult:
    """Resume an interrupted run; on the CPU it ends bit for bit like an uninterrupted one (with the same
    number of threads, which affects the order of sums; and of processes, unless `slices` is set).

    Args:
        path: the run's folder.
        steps: a new total number of steps; the learning rate follows the new length from here on.
        observer: as for `train`.
        changes: new values of options in `flashmore.config.CHANGEABLE`.

    Raises:
        RunError: not a run, or a damaged one.
        ConfigError: fewer steps than already done. Otherwise as for `train`.
    """
    if steps is not None and type(steps) is not int:
        raise ConfigError("steps, a whole number", repr(steps), "None, or an int")
    if odd := sorted(changes.keys() - set(CHANGEABLE)):
        raise ConfigError("options that may change in a run", ", ".join(odd), ", ".join(CHANGEABLE))
    with resumed(Path(path), steps, changes) as session:
        return _run_to_the_end(session, observer)


def _run_to_the_end(session: Session, observer: Observer | None) -> TrainResult:
    """Run the remaining steps, evaluate the test part once, write the result."""
    observer = observer or Observer()
    observer.started(session)
    with stop_signals() as stopped_by:
        requests = Requests(session.ranks, stopped_by)
        steps_ms = _train_what_remains(session, requests, observer)
        result = _conclude(session, requests, steps_ms)
        if session.ranks.rank == 0:
            session.run.write_result(result.to_json())
    return result


def _train_what_remains(session: Session, requests: Requests, observer: Observer) -> list[float]:
    """Run the remaining steps; returns ms per step for each log interval."""
    run, characters = session.run, session.trainer.data.tokens_a_batch
    stretches_ms: list[float] = []
    names = () if session.metrics is None else session.config.log_to
    trackers = Trackers(names, run.path, run.config, session.trainer.done)
    with trackers, session.saver:
        if session.unevaluated is not None:
            _log(session, session.unevaluated, requests, observer, trackers)
        while not session.finished and not requests.stop:
            loss, step_ms = _one_stretch(session, requests)
            stretches_ms.append(step_ms)
            recent = statistics.median(stretches_ms[-RECENT:])
            observer.stepped(session.trainer.done, loss, recent, 1000 * characters / recent)
            _log(session, Unevaluated(loss, step_ms), requests, observer, trackers)
        requests.settle()
        session.saver.finish(session.trainer.done)
        session.ranks.tell({})  # no rank ends, after which torchrun stops the others, before all is saved
        if not session.finished or session.unevaluated is not None:
            raise _interrupted(session, requests.stop)
        if session.stopped_early and session.best_step is not None:
            observer.stopped_early(session.trainer.done, session.best_step)
    return stretches_ms


def _interrupted(session: Session, number: int) -> FlashmoreError:
    """The error for a training that a signal has stopped."""
    done, total = session.trainer.done, session.config.max_steps
    return session.ranks.common(
        Interrupted(
            f"{total} steps",
            f"by {name_of(number)} at step {done:,} of {total:,}; saved",
            f"Resume with: {session.run.resume_command()}",
        )
    )


def _log(
    session: Session, logged: Unevaluated, requests: Requests, observer: Observer, trackers: Trackers
) -> None:
    """Evaluate if it is time, write a line of metrics, save."""
    config, trainer = session.config, session.trainer
    line: dict[str, Any] = {"step": trainer.done, "loss": logged.loss, "step_ms": logged.step_ms}
    pauses = trainer.done % config.eval_interval == 0 or trainer.done == config.max_steps
    session.unevaluated = None
    if pauses and session.datasets.validation is not None:
        line["val_loss"] = _evaluate(session, session.datasets.validation, requests, observer)
        if line["val_loss"] is None:
            session.unevaluated = logged
            session.save()
            return
    elif pauses:
        observer.evaluated(trainer.done, None, is_best=False)
    if config.samples_every and trainer.done % config.samples_every == 0 and session.metrics is not None:
        line["samples"] = samples(session.run, trainer.model)
    session.saver.log(line)
    trackers.write(line)
    if requests.ask(save=session.saver.is_due(logged.step_ms / 1000)) or pauses or requests.save:
        session.save()


def _one_stretch(session: Session, requests: Requests) -> tuple[float, float]:
    """Steps up to the next log line, without synchronisation in between: (last loss, ms per step)."""
    config, trainer = session.config, session.trainer
    first, began, seconds = trainer.done, time.perf_counter(), 0.0

    def stop_the_clock() -> None:
        nonlocal seconds
        passed = time.perf_counter() - began
        session.train_seconds += passed
        seconds += passed

    pauses = [config.log_interval, config.eval_interval, config.max_steps]
    pauses += [config.samples_every] if config.samples_every else []
    while True:
        step_began = time.monotonic()
        try:
            loss = trainer.train_step(min(pause - first % pause for pause in pauses) - (trainer.done - first))
        except Exception as error:
            if is_of_the_compiler(error) and (number := requests.stopped_by()):  # Ctrl-C reached it as well
                raise _interrupted(session, number) from None
            of_compiling = isinstance(error, StorageError) or is_of_the_compiler(error)
            if of_compiling and session.may_go_on_uncompiled:
                say(f"the step could not be compiled, so it runs uncompiled: {_why(error)}")
                session.go_on_uncompiled()
                return _one_stretch(session, requests)
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(trainer, error) from None
        stops = requests.ask(save=session.saver.is_due(time.monotonic() - step_began))
        if stops or any(trainer.done % pause == 0 for pause in pauses):
            break
        if requests.save:
            session.require_finite(trainer.total(loss), "training loss")
            stop_the_clock()
            session.save()
            began = time.perf_counter()
    value = trainer.total(loss)  # synchronises, so the clock is read after it
    stop_the_clock()
    session.require_finite(value, "training loss")
    return value, 1000 * seconds / (trainer.done - first)


def _why(error: Exception) -> str:
    if isinstance(error, FlashmoreError):
        return f"{error.found} (valid: {error.valid})"
    return str(error).strip().partition("\n")[0]


def _evaluate(session: Session, validation: Dataset, requests: Requests, observer: Observer) -> float | None:
    """Evaluate on the validation part, unless stopped; record the step if it is the best so far."""
    trainer = session.trainer
    val_loss = trainer.evaluate(validation, requests.ask)
    if val_loss is None:
        return None
    session.require_finite(val_loss, "validation loss")
    is_best = session.best_loss is None or val_loss < session.best_loss
    if is_best:
        session.best_loss, session.best_step = val_loss, trainer.done
    observer.evaluated(trainer.done, val_loss, is_best)
    return val_loss


def _conclude(session: Session, requests: Requests, stretches_ms: list[float]) -> TrainResult:
    """Evaluate the best weights; a signal that arrives after the last batch has no effect."""
    run = session.run
    best = session.ranks.tell({"step": run.best_step if session.ranks.rank == 0 else 0}) or {}
    session.trainer.load_weights(run.load_weights(best["step"]))

    def loss_of(data: Dataset | None) -> float | None:
        if data is None:
            return None
        loss = session.trainer.evaluate(data, requests.ask)
        requests.settle()
        if loss is None:
            raise _interrupted(session, requests.stop)
        session.require_finite(loss, "evaluation")
        return loss

    split, ngram = run.split, None
    # n-grams have no weights
    few = len(split.train) <= NGRAM_ITEMS
    if session.ranks.rank == 0 and split.validation and split.weights is None and few:
        _, ngram = best_ngram(split.train, split.validation, run.vocabulary, run.model)
    return TrainResult(
        run=str(run.path),
        model=run.model.model,
        attention=None if session.resolved.choice is None else session.resolved.choice.backend,
        parameters=count_parameters(session.trainer.model),
        steps=session.trainer.done,
        train_seconds=session.train_seconds,
        step_ms=_step_ms(session, stretches_ms),
        val_loss=loss_of(session.datasets.validation),
        test_loss=loss_of(session.datasets.test),
        leak_share=run.split.leak_share,
        test_loss_unleaked=loss_of(session.datasets.unleaked),
        ngram=ngram,
    )


def _step_ms(session: Session, stretches_ms: list[float]) -> float:
    """The median over log intervals; for a run already complete, its recorded value, or else the mean."""
    if stretches_ms:
        return statistics.median(stretches_ms)
    earlier = result_of(session.run)
    return earlier.step_ms if earlier else 1000 * session.train_seconds / session.trainer.done
