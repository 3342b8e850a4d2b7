"""The runs in a folder, with what has become of each."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flashmore.errors import RunError
from flashmore.files import disk_errors
from flashmore.runs import Run
from flashmore.runs.folder import is_pack, writer_of
from flashmore.runs.settings import CONFIG
from flashmore.training.result import result_of

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
