"""metrics.jsonl: one JSON object a line, only ever appended to while a run trains.

A line counts when its line end is there. Whatever follows the last line end was cut off when a process died,
and is dropped.
"""

import os
from pathlib import Path
from typing import Any

from flashmore.errors import RunError
from flashmore.runs import records
from flashmore.runs.storage import disk_errors, replace_file


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line, whole or not at all, after removing a cut one.

    Raises:
        StorageError: the disk refused.
        ValueError, TypeError: the line holds what JSON does not know.
    """
    left = memoryview(records.encode(line, indent=None))
    # Unbuffered, so that closing the file cannot write what was taken back.
    with disk_errors(f"to write {path}", path), path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end and not _ends_line(path):
            end = len(_whole_lines(path.read_bytes()))
            file.truncate(end)
        try:
            while left:
                left = left[file.write(left) :]
        except BaseException:
            file.truncate(end)
            raise


def read(path: Path) -> list[dict[str, Any]]:
    """Read every whole line; none where there is no file yet.

    Raises:
        RunError: a line is no JSON object with a whole number as `step`.
        StorageError: the file cannot be read.
    """
    return [record for record, _ in _records(path)]


def truncate(path: Path, step: int) -> None:
    """Remove the lines of later steps, and a cut one, in one atomic replacement.

    Raises:
        RunError: as `read`.
        StorageError: the disk refused; the file is as it was.
    """
    if path.exists():
        replace_file(path, b"".join(data for record, data in _records(path) if record["step"] <= step))


def _records(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    lines = _whole_lines(records.read_file(path)).splitlines(keepends=True) if path.exists() else []
    return [(_decode(data, number, path), data) for number, data in enumerate(lines, start=1)]


def _decode(data: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        record = records.decode(data, path)
    except RunError as error:
        raise RunError(f"JSON in line {number} of {path}", error.found, error.valid) from None
    if type(record.get("step")) is not int:
        raise RunError(f"a whole number as 'step' in line {number} of {path}", str(record), records.INTACT)
    return record


def _whole_lines(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
