"""metrics.jsonl: one JSON object per line, appended to during training.

A line is complete when it has its line ending; a partial last line, left by a killed process, is dropped. A
checkpoint stores the length and the SHA-256 of the file at its step, from which a resumed run continues.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import msgspec

from flashmore.errors import RunError
from flashmore.files import INTACT, disk_errors, open_regular, read_regular, sync, sync_folder, write_all
from flashmore.runs import records
from flashmore.runs.checkpoint import State
from flashmore.strict_json import LARGEST_FLOAT

LARGEST, MOST_LINES = 2**27, 2**20
"""Most bytes and lines read."""
_PIECE = 2**20
_Step = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Number = Annotated[float, msgspec.Meta(ge=-LARGEST_FLOAT, le=LARGEST_FLOAT)]


class _Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The fields of a line; `val_loss` if it was evaluated, `samples` if names were drawn."""

    step: _Step
    loss: _Number
    step_ms: _Number
    val_loss: _Number | None = None
    samples: list[str] | None = None


_LINES = msgspec.json.Decoder(_Line)


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """Appends to metrics.jsonl, which is created or truncated to its length at the checkpoint.

    Lines since the last checkpoint are also kept in memory: after a failed disk operation, `sync` opens the
    file again, as for a resumed run, and writes them once more. One thread may call `sync` and `saved` while
    another appends.

    Raises:
        RunError: the file no longer starts with its content at the checkpoint.
        StorageError: a disk operation failed, here or in a method.
    """

    def __init__(self, path: Path, state: State) -> None:
        self._path, self._state = path, state
        self._unsaved = bytearray()
        """The lines since the checkpoint of `_state`."""
        self._lock = Lock()
        with disk_errors(f"to write {path}", path):
            self._file, self._digest = self._opened()
        self._intact = True
        """Whether the file is open and has all lines."""

    def _opened(self) -> tuple[FileIO, "hashlib._Hash"]:
        file = open_regular(self._path, os.O_RDWR | os.O_CREAT)
        try:
            digest, length = hashlib.sha256(), 0
            while piece := file.read(min(self._state.metrics_bytes - length, _PIECE)):
                digest.update(piece)
                length += len(piece)
            _check(length, digest.hexdigest(), self._state, self._path)
            file.truncate(length)
            file.seek(length)
            sync_folder(self._path.parent)  # or a later checkpoint could outlast the name of its metrics
        except BaseException:
            file.close()
            raise
        return file, digest

    def append(self, line: Mapping[str, Any]) -> None:
        """Append a line, completely or not at all; ValueError for NaN and infinities.

        After a StorageError, this line and those that follow are in memory only, until the next `sync`.
        """
        data = records.encode(line, indent=None)
        with self._lock, disk_errors(f"to write {self._path}", self._path):
            self._digest.update(data)
            self._unsaved += data
            if self._intact:
                self._intact = False
                _write_lines(self._file, data)
                self._intact = True

    def mark(self) -> tuple[int, str]:
        """The length in bytes and the SHA-256 of all lines."""
        with self._lock:
            return self._state.metrics_bytes + len(self._unsaved), self._digest.hexdigest()

    def sync(self) -> None:
        """Flush all lines to the disk."""
        with disk_errors(f"to write {self._path}", self._path):
            with self._lock:
                if not (self._intact and self._is_there()):
                    self._intact = False
                    file, _ = self._opened()
                    self._file.close()
                    self._file = file
                    _write_lines(file, bytes(self._unsaved))
                    self._intact = True
            try:
                sync(self._file)
            except OSError:
                self._intact = False  # the system may have dropped what it could not write
                raise

    def _is_there(self) -> bool:
        """Whether the path still leads to the open file."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        return False

    def saved(self, state: State) -> None:
        """Forget the lines before a checkpoint, which has been saved."""
        with self._lock:
            del self._unsaved[: state.metrics_bytes - self._state.metrics_bytes]
            self._state = state

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _write_lines(file: FileIO, lines: bytes) -> None:
    """Write lines; if that fails, the file keeps whole ones."""
    start = file.tell()
    try:
        write_all(file, lines)
    except OSError:
        with suppress(OSError):
            file.truncate(start + lines.rfind(b"\n", 0, file.tell() - start) + 1)
        raise


def read(path: Path, state: State) -> list[dict[str, Any]]:
    """Read every line; none if there is no file yet.

    Those after the checkpoint are read up to the first that is incomplete: a power failure may have lost it.
    """
    data = read_regular(path, LARGEST) if os.path.lexists(path) else b""
    kept = data[: state.metrics_bytes]
    _check(len(kept), records.digest(kept), state, path)
    count = data.count(b"\n")
    if count > MOST_LINES:
        raise RunError(f"at most {MOST_LINES:,} lines in {path}", f"{count:,}", INTACT)
    lines = []
    end, last = 0, state.step
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        end += len(line) + 1
        try:
            logged = _LINES.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            if end > len(kept):
                break
            raise RunError(f"a logged step in line {number} of {path}", str(error), INTACT) from None
        if end > len(kept):
            if logged.step <= last:
                wanted = f"a step after {last:,} in line {number} of {path}"
                raise RunError(wanted, f"step {logged.step:,}, added or altered", INTACT)
            last = logged.step
        lines.append(msgspec.to_builtins(logged))
    return lines


def _check(length: int, sha256: str, state: State, path: Path) -> None:
    if (length, sha256) != (state.metrics_bytes, state.metrics_sha256):
        wanted = f"{path} as it was at step {state.step}: {state.metrics_bytes:,} bytes"
        raise RunError(wanted, f"{length:,} bytes, truncated or altered", INTACT)
