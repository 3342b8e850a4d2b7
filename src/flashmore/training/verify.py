"""Whether every file of a run is as it was written: checksums, shapes, values."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flashmore.data.long_text import STORE
from flashmore.errors import DataError, RunError
from flashmore.files import INTACT
from flashmore.models.registry import layout
from flashmore.runs import Run, State, checkpoint, metrics, settings
from flashmore.runs.checkpoint import differences, file_name, layout_of
from flashmore.runs.folder import is_pack
from flashmore.training.distillation import kept_teacher
from flashmore.training.folders import config_of
from flashmore.training.result import result_of

SETTINGS = (settings.CONFIG, settings.VOCABULARY, settings.SPLIT)


@dataclass(frozen=True)
class Verified:
    """A file of a run."""

    file: str
    problem: str | None
    """What is wrong with it; None if it is intact."""


def verify(path: Path) -> list[Verified]:
    """Check every file of a run, a folder or a pack; nothing is changed.

    Raises:
        RunError: there is no run at `path`.
        StorageError: a file cannot be read.
    """
    if not is_pack(path):
        settings.require_run(path)
    try:
        run = Run.open(path)
        config_of(run)
    except RunError as error:  # a pack is opened as a whole, and no file can be understood without these
        named = [name for name in SETTINGS if name in error.wanted]
        file = path.name if is_pack(path) else (named or SETTINGS)[0]
        return [Verified(file, f"{error.found}; the files after it are not checked")]
    found = [Verified(name, None) for name in SETTINGS]
    states: dict[int, State] = {}

    def check(file: str, act: Callable[[], object]) -> None:
        try:
            act()
        except (RunError, DataError) as error:
            found.append(Verified(file, error.found))
        else:
            found.append(Verified(file, None))

    def read_state(step: int) -> None:
        states[step] = _state(run, step)

    seen: set[int] = set()
    # Training may remove checkpoints meanwhile: if it has removed them all, those saved since are checked.
    while not states and (steps := {*run.steps} - seen):
        seen |= steps
        for step in sorted(steps):
            check(file_name(step), partial(read_state, step))
            if step not in states and step not in run.steps:
                found.pop()
    if run.unpacked is None:
        here = {*run.steps}
        best = {step: state.best_step for step, state in states.items() if state.best_step is not None}
        # A checkpoint is removed before that of its best weights, so this one is only missing if it is there.
        lost = {best_step for step, best_step in best.items() if best_step not in here and step in run.steps}
        with suppress(RunError):  # checked below
            finished = run.finished_steps()
            lost |= {finished} if here and finished > max(here) else set()
        for step in sorted(lost) if here else [0]:
            found.append(Verified(file_name(step), "missing"))
        if (data := _in_place(run)) is not None:
            file, ids = data
            check(file, ids)
        elif run.text is not None:
            intact = run.text.is_intact(path / STORE)
            found.append(Verified(STORE, None if intact else "missing or altered; training makes it anew"))
        for number in range(len(run.settings.teachers)):
            check(settings.TEACHERS[number], partial(kept_teacher, run, number))
        for state in list(states.values())[-1:]:
            check("metrics.jsonl", partial(metrics.read, path / "metrics.jsonl", state))
    whole = all(each.problem is None for each in found)
    if run.has_result:
        check("result.json", partial(result_of, run) if whole else run.read_result)
    return found


def _in_place(run: Run) -> tuple[str, Callable[[], object]] | None:
    """The `.bin` file that the run is trained on, and what checks it; None without one."""
    stored, text = run.settings.stored, run.text
    if stored is not None:
        return stored.path, stored.ids
    if text is not None and text.path is not None and text.in_place:
        return text.path, partial(text.ids, run.path, run.vocabulary)
    return None


def _state(run: Run, step: int) -> State:
    """The state of an intact checkpoint, with finite values in the shapes of the run's model."""
    path, weights = run.checkpoint(step), layout(run.model)
    tensors = checkpoint.load_all(path, run.digest)
    wanted, found = weights, layout_of(tensors.weights)
    if wanted != found:
        raise RunError(f"weights that fit this run's model in {path}", differences(wanted, found), INTACT)
    moments = {name: value for name, value in tensors.optimizer.items() if name.partition(".")[2] in weights}
    for name, value in (tensors.weights | moments).items():
        shape = weights[name if name in weights else name.partition(".")[2]][0]
        if value.shape != shape:
            raise RunError(f"{name} of shape {shape} in {path}", f"{name} of {tuple(value.shape)}", INTACT)
        if not value.isfinite().all():
            raise RunError(f"finite values in {path}", f"NaN or infinities in {name}", INTACT)
    return tensors.state
