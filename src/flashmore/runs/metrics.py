"""metrics.jsonl: one JSON object a line, only ever appended to while a run trains.

A line counts when its line end is there. Whatever follows the last line end was cut off when a process died,
and is dropped. A checkpoint knows the length and the SHA-256 of the file at its step, so that a run goes on
with its own.
"""

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flashmore.errors import RunError
from flashmore.files import INTACT, disk_errors, open_regular, read_exactly, read_regular, write_all
from flashmore.runs import records
from flashmore.runs.checkpoint import State

LARGEST = 2**30
"""Bytes that are read at most: some ten million lines."""


class MetricsLog:
    """metrics.jsonl of a run that trains, cut back to where the checkpoint left it; use it as a context.

    Args:
        path: the file; it is made where there is none.
        state: of the checkpoint that the run goes on from.

    Raises:
        RunError: the file no longer begins with what it held at the checkpoint.
        StorageError: the disk refused.
    """

    def __init__(self, path: Path, state: State) -> None:
        self._path = path
        with disk_errors(f"to write {path}", path):
            self._file = open_regular(path, os.O_RDWR | os.O_CREAT)
            try:
                kept = read_exactly(self._file, min(state.metrics_bytes, LARGEST))
                _check(kept, state, path)
                self._file.truncate(len(kept))
                self._file.seek(len(kept))
            except BaseException:
                self._file.close()
                raise
        self._digest = hashlib.sha256(kept)
        self._bytes = len(kept)

    def append(self, line: dict[str, Any]) -> None:
        """Add a line, whole or not at all.

        Args:
            line: JSON values, with `step` as a whole number; NaN and infinities are refused.

        Raises:
            StorageError: the disk refused.
            ValueError, TypeError: the line holds what JSON does not know.
        """
        data = records.encode(line, indent=None)
        with disk_errors(f"to write {self._path}", self._path):
            try:
                write_all(self._file, data)
            except BaseException:
                self._file.truncate(self._bytes)
                self._file.seek(self._bytes)
                raise
        self._digest.update(data)
        self._bytes += len(data)

    def saved(self) -> tuple[int, str]:
        """Wait until the disk has every line; length in bytes and SHA-256 of the file.

        Raises:
            StorageError: the disk refused.
        """
        with disk_errors(f"to write {self._path}", self._path):
            os.fsync(self._file.fileno())
        return self._bytes, self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read(path: Path, state: State) -> list[dict[str, Any]]:
    """Read every whole line, those after the checkpoint too; none where there is no file yet.

    Args:
        path: the file.
        state: of the run's checkpoint `last`.

    Raises:
        RunError: the file does not begin with what it held at the checkpoint, or a line is no JSON object.
        StorageError: the file cannot be read.
    """
    data = read_regular(path, LARGEST) if path.is_symlink() or path.exists() else b""
    _check(data[: state.metrics_bytes], state, path)
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    return [_decode(line, number, path) for number, line in enumerate(lines, start=1)]


def _check(kept: bytes, state: State, path: Path) -> None:
    if len(kept) != state.metrics_bytes or records.digest(kept) != state.metrics_sha256:
        wanted = f"{path} as it was at step {state.step}: {state.metrics_bytes:,} bytes"
        raise RunError(wanted, f"{len(kept):,} bytes, cut off or altered", INTACT)


def _decode(data: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        record = records.decode(data, path)
    except RunError as error:
        raise RunError(f"JSON in line {number} of {path}", error.found, error.valid) from None
    if type(record.get("step")) is not int:
        raise RunError(f"a whole number as 'step' in line {number} of {path}", "none", INTACT)
    return record
