"""metrics.jsonl: one JSON object per line, appended to during training.

A line is complete when it has its line ending; a partial last line, left by a killed process, is dropped. A
checkpoint stores the length and the SHA-256 of the file at its step, from which a resumed run continues.
"""

import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import msgspec

from flashmore.errors import RunError
from flashmore.files import INTACT, disk_errors, open_regular, read_regular, write_all
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

    Raises:
        RunError: the file no longer starts with its content at the checkpoint.
        StorageError: a disk operation failed, here or in a method.
    """

    def __init__(self, path: Path, state: State) -> None:
        self._path = path
        with disk_errors(f"to write {path}", path):
            self._file = open_regular(path, os.O_RDWR | os.O_CREAT)
            try:
                self._digest, self._bytes = hashlib.sha256(), 0
                while piece := self._file.read(min(state.metrics_bytes - self._bytes, _PIECE)):
                    self._digest.update(piece)
                    self._bytes += len(piece)
                _check(self._bytes, self._digest.hexdigest(), state, path)
                self._truncate()
            except BaseException:
                self._file.close()
                raise

    def _truncate(self) -> None:
        self._file.truncate(self._bytes)
        self._file.seek(self._bytes)

    def append(self, line: dict[str, Any]) -> None:
        """Append a line, completely or not at all; ValueError for NaN and infinities."""
        data = records.encode(line, indent=None)
        with disk_errors(f"to write {self._path}", self._path):
            try:
                write_all(self._file, data)
            except BaseException:
                self._truncate()
                raise
        self._digest.update(data)
        self._bytes += len(data)

    def saved(self) -> tuple[int, str]:
        """Flush to disk; returns the length in bytes and the SHA-256 of the file."""
        with disk_errors(f"to write {self._path}", self._path):
            os.fsync(self._file.fileno())
        return self._bytes, self._digest.hexdigest()

    def __exit__(self, *error: object) -> None:
        self._file.close()


def read(path: Path, state: State) -> list[dict[str, Any]]:
    """Read every complete line, including those after the checkpoint `last`; none if there is no file yet."""
    data = read_regular(path, LARGEST) if os.path.lexists(path) else b""
    kept = data[: state.metrics_bytes]
    _check(len(kept), records.digest(kept), state, path)
    count = data.count(b"\n")
    if count > MOST_LINES:
        raise RunError(f"at most {MOST_LINES:,} lines in {path}", f"{count:,}", INTACT)
    lines = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            lines.append(msgspec.to_builtins(_LINES.decode(line)))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise RunError(f"a logged step in line {number} of {path}", str(error), INTACT) from None
    return lines


def _check(length: int, sha256: str, state: State, path: Path) -> None:
    if (length, sha256) != (state.metrics_bytes, state.metrics_sha256):
        wanted = f"{path} as it was at step {state.step}: {state.metrics_bytes:,} bytes"
        raise RunError(wanted, f"{length:,} bytes, truncated or altered", INTACT)
