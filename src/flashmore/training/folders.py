"""The folders of runs: which one a training uses, the config that it holds, and what has become of each."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Literal

from flashmore.config import CHANGEABLE, OPEN, TrainConfig
from flashmore.errors import RunError, StorageError
from flashmore.files import INTACT, disk_errors
from flashmore.runs import Run, Settings, locked
from flashmore.runs.folder import is_pack, writer_of
from flashmore.runs.records import convert
from flashmore.runs.settings import CONFIG, is_run, require_same
from flashmore.training.result import result_of


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
    free = {"speedups", *CHANGEABLE, *(name for name in OPEN if asked.get(name) is None)}
    odd = [name for name, value in run.config.items() if name not in free and asked.get(name) != value]
    if odd:
        raise RunError(wanted, f"values of {', '.join(odd)} that were not requested", INTACT)
    return config


def folder_of_teacher(run: Path, number: int) -> Path:
    """The folder of a teacher that is trained for a run, counted from 1."""
    return run.with_name(f"{run.name}-teacher-{number}")


def unused_folders(path: Path) -> Iterator[Path]:
    """Those of PATH, PATH-2, … that hold neither a run nor anything else, and have no teachers."""
    for number in count(1):
        other = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            if not (is_run(other) or other.is_symlink() or is_run(folder_of_teacher(other, 1))):
                yield other
        except RunError:  # occupied by something else
            continue


def started_before(asked: Settings, parent: Path) -> Path | None:
    """The newest unfinished run that the same command started, or else the newest finished one."""
    found = []
    with disk_errors(f"to look for runs in {parent}", parent):
        folders = sorted(parent.iterdir()) if parent.is_dir() else []
    for path in folders:
        try:
            run = Run.open(path)
            require_same(run.settings, asked, path)
            state = run.load_state(best_lost=True)
            found.append((result_of(run) is None, run.checkpoint(state.step).stat().st_mtime_ns, path))
        except (RunError, StorageError, OSError):  # another run, or none that can be read
            continue
    return max(found)[-1] if found else None


def holds_run(path: Path) -> bool:
    """As `is_run`; a dangling link is not a new folder either."""
    found = is_run(path)
    if not found and path.is_symlink() and not path.exists():
        raise RunError(f"a new or empty folder at {path}", "a broken link", "another path")
    return found


def lock_new(lock: ExitStack, model: str, out: Path | None) -> Path:
    """Lock the folder of a new run; without `out`, one in which no other process is creating a run."""
    for path in [out] if out is not None else unused_folders(Path("runs", model)):
        try:
            lock.enter_context(locked(path))
        except RunError:
            if out is not None:
                raise
        else:
            return path
    raise AssertionError("there are endlessly many folders")


PACK = ".pack"
"""How the name of a file ends that is listed; any other is not opened."""


@dataclass(frozen=True)
class Listed:
    """A run of a folder; what a damaged one does not tell is None."""

    run: str
    state: Literal["finished", "unfinished", "training", "imported", "packed", "damaged"]
    bytes: int
    """Size of all of its files."""
    detail: str | None = None
    """The process that trains it, or what is damaged."""
    model: str | None = None
    data: str | None = None
    """The name of its file."""
    step: int | None = None
    max_steps: int | None = None
    val_loss: float | None = None
    """In nats per character: of a finished run its result, else the best so far."""
    test_loss: float | None = None


def runs_in(folder: Path) -> list[Listed]:
    """The runs and packs in a folder, by name; every checksum of each is verified.

    Raises:
        RunError: there is no such folder.
        StorageError: it cannot be read.
    """
    with disk_errors(f"to list the runs in {folder}", folder):
        if not folder.is_dir():
            found = "a file" if folder.exists() else "no such folder"
            raise RunError(f"a folder of runs at {folder}", found, "the folder that contains the runs")
        paths = sorted(folder.iterdir())
        return [_listed(path) for path in paths if (path / CONFIG).exists() or path.suffix == PACK]


def _size(path: Path) -> int:
    size = 0
    for each in [path] if path.is_file() else path.iterdir():
        with suppress(FileNotFoundError):  # training has renamed or removed it meanwhile
            size += os.lstat(each).st_size
    return size


def _listed(path: Path) -> Listed:
    size = _size(path)
    writer = None if is_pack(path) else writer_of(path)
    try:
        run = Run.open(path)
        state, result = run.load_state(best_lost=True), result_of(run)
    except RunError as error:
        return Listed(str(path), "damaged", size, error.found)
    stage: Literal["finished", "unfinished", "training", "imported", "packed"] = "unfinished"
    if writer is not None:
        stage = "training"
    elif run.settings.packed:
        stage = "packed"
    elif result is not None:
        stage = "finished" if state.max_steps else "imported"
    file = run.config.get("file")
    random = run.text is not None and run.text.kind == "random"
    return Listed(
        run=str(path),
        state=stage,
        bytes=size,
        detail=writer,
        model=run.model.model,
        data=Path(file).name if file else "random ids" if random else "built-in names",
        step=state.step,
        max_steps=state.max_steps,
        val_loss=state.best_loss if result is None else result.val_loss,
        test_loss=None if result is None else result.test_loss,
    )
