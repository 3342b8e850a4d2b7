"""JSON files of a run: strict to write, checked to read, and sealed where an altered value would do harm.

A sealed record carries `sha256`, the SHA-256 of its other content in a canonical form, so that a value that
was altered is found although the file is still JSON.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from flashmore.errors import RunError
from flashmore.runs.storage import disk_errors

INTACT = "the run as flashmore wrote it: copy it again from where it is intact, or train anew"
_SEAL = "sha256"


def digest(data: bytes) -> str:
    """Give the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def encode(value: object, indent: int | None = 2) -> bytes:
    """Write a value as strict JSON in UTF-8.

    Raises:
        ValueError: a number that JSON does not know (NaN or an infinity).
        TypeError: a value that JSON does not know.
    """
    return (json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode()


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Give the content as plain JSON values, with its checksum.

    Raises:
        ValueError, TypeError: as `encode` does.
    """
    plain = json.loads(encode(content))
    return {**plain, _SEAL: _checksum(plain)}


def read_file(path: Path) -> bytes:
    """Read a file of a run.

    Raises:
        RunError: it is missing, or no file.
        StorageError: it cannot be read.
    """
    with disk_errors(f"to read {path}", path):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"the file {path}", "it is missing", INTACT) from None
        except IsADirectoryError:
            raise RunError(f"the file {path}", "a folder", INTACT) from None


def decode(data: bytes, path: Path) -> dict[str, Any]:
    """Read a JSON object from the bytes of `path`.

    Raises:
        RunError: the bytes are no JSON object, as when the end is cut off.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RunError(f"JSON in {path}", f"cut off or altered: {error}", INTACT) from None
    if not isinstance(value, dict):
        raise RunError(f"a JSON object in {path}", type(value).__name__, INTACT)
    return value


def check_seal(record: dict[str, Any], path: Path) -> None:
    """Compare a record's content with its checksum.

    Raises:
        RunError: they differ.
    """
    content = {key: value for key, value in record.items() if key != _SEAL}
    if record.get(_SEAL) != _checksum(content):
        raise RunError(f"{path} with the content that its checksum describes", "it was altered", INTACT)


def check_digest(data: bytes, expected: object, path: Path) -> None:
    """Compare a file's bytes with the SHA-256 that was written down for it.

    Raises:
        RunError: they differ.
    """
    if digest(data) != expected:
        raise RunError(
            f"{path} with SHA-256 {str(expected)[:12]}…",
            f"{len(data):,} bytes with SHA-256 {digest(data)[:12]}…: cut off or altered",
            INTACT,
        )


def _checksum(plain: dict[str, Any]) -> str:
    return digest(json.dumps(plain, sort_keys=True).encode())


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
