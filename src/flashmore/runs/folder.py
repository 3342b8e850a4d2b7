"""A run's folder: config, data, metrics, checkpoints, result, and a lock for one writer."""

import os
import shlex
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from filelock import lock_descriptor
from torch import Tensor, nn

from flashmore.data.items import Split
from flashmore.data.long_text import LongText
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import RunError, StorageError
from flashmore.files import (
    INTACT,
    disk_errors,
    is_temporary,
    open_regular,
    read_regular,
    reading,
    replace_file,
    sync_folder,
    write_all,
)
from flashmore.models.config import ModelConfig
from flashmore.models.registry import layout
from flashmore.runs import checkpoint, metrics, pack, records, settings
from flashmore.runs.checkpoint import Checkpoint, Layout, State, file_name, step_of
from flashmore.runs.metrics import MetricsLog
from flashmore.runs.settings import LOCK, Settings
from flashmore.terminal import say

LARGEST_RESULT, _LARGEST_LOCK = 2**20, 200
"""Most bytes read of result.json, and of the lock, which names the process that holds it."""
KEEP = 2
"""Checkpoints that are kept by default, apart from the best ones."""
T = TypeVar("T")
_Files = dict[int, tuple[int, int, int]]
"""By the step of each checkpoint, what changes when its file is replaced."""


@dataclass(frozen=True)
class Run:
    """An open run folder, with everything needed to resume, generate and label; use `create` or `open`.

    docs/runs.md lists the files. Opening and reading change nothing in the folder, run no code from it and
    follow no link in it. If the newest checkpoint is damaged, the newest intact one is used, and a line on
    stderr says so.

    Raises:
        RunError: from every method that reads: a file is missing, truncated, altered or of another run.
        StorageError: a file cannot be read or written; what was there before is kept.
    """

    path: Path
    settings: Settings = field(repr=False)  # the items, too
    digest: str
    """SHA-256 of config.json, stored in the checkpoints and the result."""
    unpacked: Path | None = None
    """For a pack: the temporary folder with its files, which is removed with this object."""
    _checked: dict[tuple[object, ...], State] = field(default_factory=dict, repr=False, compare=False)
    """The state that was last found intact, by `best_lost` of `load_state` and the files of then."""

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
        self.save_checkpoint(first)
        replace_file(self.path / settings.CONFIG, settings.encode(self.settings)[settings.CONFIG])

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
        return metrics.read(self.path / "metrics.jsonl", self.load_state())

    def save_checkpoint(self, saved: Checkpoint, keep: int = KEEP) -> None:
        """Save a checkpoint atomically, then remove those that are no longer kept."""
        checkpoint.save(self.checkpoint(saved.state.step), self.digest, saved)
        self.prune(saved.state, keep)

    def prune(self, newest: State, keep: int) -> None:
        """Remove all checkpoints but the `keep` newest, and for each of those the one with its best weights.

        If none of those has its best weights, the newest one that has them is kept too. Those after `newest`,
        which has just been saved, are damaged and are removed. A file that cannot be removed now is removed
        after a later save.
        """
        newest_first = self.steps[::-1]
        kept, has_best = {newest.best_step}, False
        for count, step in enumerate(step for step in newest_first if step <= newest.step):
            if count >= keep and has_best:
                break
            kept.add(step)
            with suppress(RunError, StorageError):  # damaged, so that its best step is not known
                best = checkpoint.load(self.checkpoint(step), self.digest).state.best_step
                kept.add(best)
                has_best = has_best or best in (None, *newest_first)
        for step in newest_first:  # so that no checkpoint is ever without that of its best weights
            if step not in kept:
                with suppress(OSError):
                    self.checkpoint(step).unlink()

    def require_here(self) -> None:
        """Refuse a folder that is gone, or that is no longer this run's."""
        path = self.path / settings.CONFIG
        if records.digest(read_regular(path, settings.LARGEST_CONFIG)) != self.digest:
            raise RunError(f"the run of this process in {self.path}", "another run", "the folder as it was")

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in ascending order."""
        return sorted(self._files())

    def load_state(self, *, best_lost: bool = False) -> State:
        """Read the state of the newest intact checkpoint whose best weights are intact too.

        Args:
            best_lost: if there is none, use the newest intact one as if no weights had been the best.
        """

        def read() -> State:
            files = self._files()
            known = self._checked.get((best_lost, *files.items()))
            return self._newest(files, best_lost=best_lost) if known is None else known

        return self._unchanged(read)

    @property
    def best_step(self) -> int:
        """The step with the best weights, or the last one without a validation part."""
        return self._best_step(self.load_state())

    def load_checkpoint(self, optimizer: Layout, step: int | None = None) -> Checkpoint:
        """Read the checkpoint of a step, by default the newest intact one; the optimizer has this layout."""

        def read() -> Checkpoint:
            path = self.checkpoint(self.load_state(best_lost=True).step if step is None else step)
            return checkpoint.load(path, self.digest, layout(self.model), optimizer)

        return self._unchanged(read)

    def load_weights(self, step: int | None = None) -> dict[str, Tensor]:
        """Read the weights of the checkpoint of a step, by default the best ones of the newest checkpoint."""

        def read() -> dict[str, Tensor]:
            path = self.checkpoint(self.best_step if step is None else step)
            return checkpoint.load(path, self.digest, layout(self.model)).weights

        return self._unchanged(read)

    def _newest(self, files: _Files, *, best_lost: bool) -> State:
        """As `load_state`, which says what is damaged."""
        states: dict[int, State] = {}
        damaged: dict[int, str] = {}

        def intact(step: int) -> bool:
            if step not in states | damaged:
                try:
                    states[step] = checkpoint.verify(self.checkpoint(step), self.digest)
                except RunError as error:
                    damaged[step] = f"{file_name(step)}: {error.found}"
            return step in states

        result = ""
        try:  # a run that has its result has the checkpoint of its last step
            finished = self.finished_steps()
            if files and finished > max(files):
                damaged[finished] = f"{file_name(finished)}: it is missing"
        except RunError as error:
            result = f"{pack.RESULT}: {error.found}"
        newest_first = sorted(files, reverse=True)
        with_best = (step for step in newest_first if intact(step) and intact(self._best_step(states[step])))
        used, instead = next(with_best, None), ""
        if used is None and best_lost and (used := next(filter(intact, newest_first), None)) is not None:
            states[used] = replace(states[used], best_loss=None, best_step=None)
            instead = ", without the best weights so far, which are lost"
        if result and used is not None and used < states[used].max_steps:  # or the last checkpoint is missing
            damaged[-1] = result
        found = "; ".join(damaged.values())
        if used is None or (damaged and self._files() != files):  # the latter is read again
            wanted = f"an intact checkpoint in {self.path}"
            if states:
                valid = f"{INTACT}; to go on without the best weights: {self.resume_command()}"
                raise RunError(f"{wanted}, with that of its best weights", found, valid)
            raise RunError(wanted, found or "no checkpoint", INTACT)
        if damaged:
            say(f"{self.path} is damaged ({found}): using the checkpoint of step {used:,}{instead}")
        self._checked.clear()
        for allowed in (True,) if instead else (True, False):
            self._checked[allowed, *files.items()] = states[used]
        return states[used]

    def _best_step(self, state: State) -> int:
        """The step of the checkpoint with the best weights, or the last ones without a validation part."""
        # A pack has a single checkpoint: the state of the last one, and the best weights.
        return state.step if state.best_step is None or self.settings.packed else state.best_step

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
        if not self.has_result:
            return None
        record = records.decode(read_regular(self._result, LARGEST_RESULT), self._result)
        result = records.unseal(record, self._result)
        if result.pop("config_sha256", None) != self.digest:
            raise RunError(f"the result of this run in {self._result}", "the result of another run", INTACT)
        return result

    def finished_steps(self) -> int:
        """The steps that the result tells, 0 if there is none; RunError as from `read_result`."""
        steps = (self.read_result() or {}).get("steps", 0)
        if type(steps) is not int:
            raise RunError(f"a number of steps in {self._result}", f"{steps!r:.40}", INTACT)
        return steps

    @property
    def has_result(self) -> bool:
        """Whether there is a result.json."""
        return self._result.exists()

    def resume_command(self) -> str:
        """The command that resumes this run."""
        return f"flashmore train --resume {shlex.quote(str(self.path))}"

    @property
    def _folder(self) -> Path:
        return self.unpacked or self.path

    @property
    def _result(self) -> Path:
        return self._folder / pack.RESULT

    def checkpoint(self, step: int) -> Path:
        """The file of the checkpoint of a step."""
        return self._folder / file_name(step)

    def _unchanged(self, read: Callable[[], T]) -> T:
        """Read again if the training process has replaced or removed a checkpoint meanwhile."""
        while True:
            before = self._files()
            try:
                return read()
            except RunError:
                if self._files() == before:
                    raise

    def _files(self) -> _Files:
        files = {}
        with reading(self._folder):
            for entry in os.scandir(self._folder):
                if (step := step_of(entry.name)) is not None:
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        files[step] = status.st_ino, status.st_mtime_ns, status.st_size
        return files


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


def writer_of(folder: Path) -> str | None:
    """The process that holds the lock of a folder, in words; None for none."""
    with suppress(OSError, RunError), open_regular(folder / LOCK) as file:
        return _holder(file)
    return None


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
            with disk_errors(f"to make the folder {folder}", folder):
                # After a power failure, the files of a killed creation are known by the lock beside them.
                for path in (folder, *(path.parent for path in made)):
                    sync_folder(path)
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
    if (holder := _holder(file)) is not None:
        raise RunError(
            f"exclusive access to the run {folder}",
            f"it is being written by {holder}",
            "wait until that process has ended, or use another folder",
        )


def _holder(file: FileIO) -> str | None:
    """The process that holds the lock; None if this one holds it now."""
    try:
        if lock_descriptor(file.fileno(), blocking=False):
            return None
    except OSError:  # a file system without locks
        return None
    holder = ""
    with suppress(OSError):  # Windows does not allow reading a locked file
        holder = (file.read(_LARGEST_LOCK) or b"").decode("utf-8", "replace")
    return holder or "another process"


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
