"""A run's folder: config, data, metrics, checkpoints, result, and a lock for one writer."""

import os
import shlex
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from filelock import lock_descriptor
from torch import Tensor, nn

from flashmore.data.items import Split
from flashmore.data.long_text import LongText
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import RunError
from flashmore.files import (
    INTACT,
    disk_errors,
    is_temporary,
    open_regular,
    read_regular,
    replace_file,
    sync_folder,
    write_all,
)
from flashmore.models.config import ModelConfig
from flashmore.models.registry import layout
from flashmore.runs import checkpoint, metrics, pack, records, settings
from flashmore.runs.checkpoint import Checkpoint, Layout, Name, State
from flashmore.runs.metrics import MetricsLog
from flashmore.runs.settings import LOCK, Settings

LARGEST_RESULT, _LARGEST_LOCK = 2**20, 200
"""Most bytes read of result.json, and of the lock, which names the process that holds it."""
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """An open run folder, with everything needed to resume, generate and label; use `create` or `open`.

    docs/runs.md lists the files. Opening and reading change nothing in the folder, run no code from it and
    follow no link in it.

    Raises:
        RunError: from every method that reads: a file is missing, truncated, altered or of another run.
        StorageError: a file cannot be read or written; what was there before is kept.
    """

    path: Path
    settings: Settings
    digest: str
    """SHA-256 of config.json, stored in the checkpoints and the result."""
    unpacked: Path | None = None
    """For a pack: the temporary folder with its files, which is removed with this object."""

    @classmethod
    @contextmanager
    def create(cls, path: Path, made_from: Settings) -> Iterator["Run"]:
        """Create the folder of a new run; it becomes a run with its first checkpoint.

        Within the context the run has everything except config.json and checkpoints: call `begin` with the
        first checkpoint. Otherwise everything is removed again. The caller must hold the lock (`locked`).

        Raises:
            RunError: `path` is a file, or a folder that is neither empty nor left by a killed creation.
            DataError: a long text has changed meanwhile, or there are too many items for a run's folder.
        """
        if settings.is_run(path):
            raise RunError(f"a new or empty folder at {path}", "a run", "another folder")
        with disk_errors(f"to make the run {path}", path):
            path.mkdir(parents=True, exist_ok=True)
            remove_unfinished(path)
            try:
                if made_from.text is not None:
                    stored = made_from.text.stored(path, made_from.vocabulary)
                    made_from = replace(made_from, text=stored)
                files = settings.encode(made_from)
                for name in (settings.VOCABULARY, settings.SPLIT):
                    replace_file(path / name, files[name])
                yield cls(path, made_from, records.digest(files[settings.CONFIG]))
            finally:
                if not (path / settings.CONFIG).exists():
                    remove_unfinished(path)

    def begin(self, first: Checkpoint) -> None:
        """Save the first checkpoint, then config.json, which makes the folder a run."""
        self.save_checkpoint("last", first)
        replace_file(self.path / settings.CONFIG, settings.encode(self.settings)[settings.CONFIG])
        sync_folder(self.path.parent)

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """Open the folder of a run, or a pack.

        Raises:
            RunError: it is not a run or of an unknown format, contains anything but regular files, or has
                settings that are missing, truncated or altered; a pack is checked as a whole.
        """
        path = Path(path)
        return cls._open_pack(path) if is_pack(path) else cls(path, *settings.read(path))

    @classmethod
    def _open_pack(cls, path: Path) -> "Run":
        with disk_errors(f"to unpack {path}", path):
            folder = Path(tempfile.mkdtemp(prefix="flashmore-"))
        try:
            with disk_errors(f"to unpack {path}", path):
                pack.unpack(path, folder)
            run = cls(path, *settings.read(folder), folder)
            run.load_weights()
            if run.read_result() is None:
                raise RunError(f"a run at {path}", f"a pack without {pack.RESULT}", INTACT)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, RunError):  # names the pack, not where it was unpacked
                wanted, found = (part.replace(str(folder), str(path)) for part in (error.wanted, error.found))
                raise RunError(wanted, found, error.valid) from None
            raise
        weakref.finalize(run, shutil.rmtree, folder, ignore_errors=True)
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, as JSON values."""
        return self.settings.config

    @property
    def model(self) -> ModelConfig:
        """The model's sizes."""
        return self.settings.model

    @property
    def vocabulary(self) -> Vocabulary:
        """The characters."""
        return self.settings.vocabulary

    @property
    def split(self) -> Split:
        """The items of each part; all empty for a run on a long text."""
        return self.settings.split

    @property
    def text(self) -> LongText | None:
        """The long text that the run trains on; None for a run on items."""
        return self.settings.text

    def require_items(self, wanted: str) -> None:
        """Refuse an operation on items, such as `to score names`, for a run on one long text."""
        if self.text is not None:
            raise RunError(
                f"a run on items {wanted}",
                f"{self.path}, a run on one long text (--mode text)",
                f"a run with --mode items; the losses of this run are in {self._result}",
            )

    def require_training_items(self, option: str) -> None:
        """Refuse an option that needs the training items, for a pack without them."""
        if not self.split.train:
            raise RunError(
                f"a run with its training items for {option}",
                f"{self.path}, a {'pack' if self.settings.stored is None else 'prepared list'} without items",
                "the folder of a run on a list that was not prepared, or a pack of it made with --with-items",
            )

    def log_metrics(self, state: State) -> MetricsLog:
        """Open metrics.jsonl to resume from a checkpoint; later lines are dropped."""
        return MetricsLog(self.path / "metrics.jsonl", state)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read the lines of metrics.jsonl, without a truncated last one."""
        return metrics.read(self.path / "metrics.jsonl", self.load_state("last"))

    def save_checkpoint(self, name: Name, saved: Checkpoint) -> None:
        """Replace a checkpoint atomically."""
        checkpoint.save(self._checkpoint(name), self.digest, saved)

    def load_state(self, name: Name) -> State:
        """Read the state of a checkpoint without its tensors."""
        return checkpoint.load(self._checkpoint(name), self.digest).state

    def load_checkpoint(self, optimizer: Layout, optional: Layout | None = None) -> Checkpoint:
        """Read the checkpoint `last`, which `best` must match.

        Args:
            optimizer: the layout of this run's optimizer.
            optional: further tensors that it may have.
        """

        def read() -> Checkpoint:
            path = self._checkpoint("last")
            loaded = checkpoint.load(path, self.digest, layout(self.model), optimizer, optional)
            self._best(loaded.state)
            return loaded

        return self._unchanged(read)

    def load_weights(self, name: Name | None = None) -> dict[str, Tensor]:
        """Read the weights of a checkpoint, by default the best, or the last without a validation part."""

        def read() -> dict[str, Tensor]:
            path = self._checkpoint(name or self._best(self.load_state("last")))
            return checkpoint.load(path, self.digest, layout(self.model)).weights

        return self._unchanged(read)

    def restore(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Copy weights into a model; it is unchanged if names, shapes or dtypes are not the model's."""
        wanted, found = checkpoint.layout_of(model.state_dict()), checkpoint.layout_of(weights)
        if wanted != found:
            raise RunError(
                f"weights for the {self.model.model} of {self.path}",
                checkpoint.differences(wanted, found),
                f"the version of flashmore that made this run: {self.settings.versions.get('flashmore')}",
            )
        model.load_state_dict(weights)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json; ValueError or TypeError for what JSON does not support."""
        replace_file(self._result, records.encode(records.seal(result | {"config_sha256": self.digest})))

    def read_result(self) -> dict[str, Any] | None:
        """Read result.json; None if there is none."""
        if not self._result.exists():
            return None
        record = records.decode(read_regular(self._result, LARGEST_RESULT), self._result)
        result = records.unseal(record, self._result)
        if result.pop("config_sha256", None) != self.digest:
            raise RunError(f"the result of this run in {self._result}", "the result of another run", INTACT)
        return result

    def resume_command(self) -> str:
        """The command that resumes this run."""
        return f"flashmore train --resume {shlex.quote(str(self.path))}"

    @property
    def _files(self) -> Path:
        return self.unpacked or self.path

    @property
    def _result(self) -> Path:
        return self._files / pack.RESULT

    def _checkpoint(self, name: Name) -> Path:
        return self._files / f"{name}.safetensors"

    def _unchanged(self, read: Callable[[], T]) -> T:
        """Read again if the training process has replaced a checkpoint between two openings of its file."""
        while True:
            before = self._identities()
            try:
                return read()
            except RunError:
                if self._identities() == before:
                    raise

    def _identities(self) -> list[tuple[int, int]]:
        """What changes when a checkpoint is replaced."""
        identities = []
        names: tuple[Name, Name] = ("last", "best")
        for name in names:
            with suppress(FileNotFoundError):
                status = self._checkpoint(name).lstat()
                identities.append((status.st_ino, status.st_mtime_ns))
        return identities

    def _best(self, last: State) -> Name:
        """The one with the best weights: `last` is saved first, so it is `last` right after an evaluation."""
        path = self._checkpoint("best")
        if last.best_step in (None, last.step):
            if path.exists():  # of an earlier step, but of this run
                self.load_state("best")
            return "last"
        step = self.load_state("best").step
        if step != last.best_step:
            wanted = f"the checkpoint of step {last.best_step} in {path}"
            raise RunError(wanted, f"one of step {step}", INTACT)
        return "best"


def is_pack(path: Path) -> bool:
    """Whether a file is at `path`, which can only be a pack."""
    with disk_errors(f"a run at {path}", path):
        return path.is_file()


def remove_unfinished(path: Path) -> None:
    """Remove temporary files and the files of an incomplete run, except the lock, which is being held."""
    with suppress(OSError):
        is_run = (path / settings.CONFIG).exists()
        for entry in list(os.scandir(path)):
            unfinished = not is_run and entry.name in settings.UNFINISHED - {LOCK}
            if (unfinished or is_temporary(entry.name)) and entry.is_file(follow_symlinks=False):
                Path(entry.path).unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder of a run for this process; a missing folder is created.

    If the folder contains only the lock at the end, it is removed again, with the parents created for it.

    Raises:
        RunError: another process, which is named, holds the lock.
        StorageError: a disk operation failed.
    """
    with disk_errors(f"to make the folder {folder}", folder):
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = _hold(folder)
        except BaseException:
            _remove(made)
            raise
    with file:
        try:
            yield
        finally:
            with suppress(OSError):
                if [entry.name for entry in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    _remove(made)


def _hold(folder: Path) -> FileIO:
    while True:
        file = open_regular(folder / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            _acquire(file, folder)
            # Its last holder may have removed the file between opening and locking: then it locks nothing.
            if os.fstat(file.fileno()).st_nlink:
                file.truncate(0)
                since = f"since {datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z}"
                with suppress(OSError):  # a full disk: the lock holds without a name in it
                    write_all(file, f"process {os.getpid()} on {socket.gethostname()}, {since}".encode())
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _acquire(file: FileIO, folder: Path) -> None:
    try:
        if lock_descriptor(file.fileno(), blocking=False):
            return
    except OSError:  # a file system without locks
        return
    holder = ""
    with suppress(OSError):  # Windows does not allow reading a locked file
        holder = (file.read(_LARGEST_LOCK) or b"").decode("utf-8", "replace")
    raise RunError(
        f"exclusive access to the run {folder}",
        f"it is being written by {holder or 'another process'}",
        "wait until that process has ended, or use another folder",
    )


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
