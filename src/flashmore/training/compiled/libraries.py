"""The user's cache of compiled training steps: libraries made by AOTInductor, by a digest of their program.

It has native code that is executed, so it lies in the user's own folder, and no run has a copy.
"""

import hashlib
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import FileIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import msgspec
import torch
from filelock import lock_descriptor

from flashmore.errors import FlashmoreError, StorageError
from flashmore.files import (
    cache_folder,
    disk_errors,
    is_temporary,
    open_regular,
    read_regular,
    replace_file,
    write_all,
)
from flashmore.terminal import say

LARGEST_LIBRARY, LARGEST_NOTE = 2**30, 2**20
"""Most bytes of the files of a step; ours have about 3 million and 200."""
UNFINISHED_SECONDS = 3600.0
"""Temporary files older than this are of processes that were killed."""
LOCK = "lock"
"""File that the process that compiles for the cache holds, with the error of the last one that failed."""
MOST_LIBRARIES = 100
"""Libraries kept in the cache, of which the longest unused are removed."""
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class _Note:
    """The file beside a library."""

    sha256: str
    """Of the library: what is damaged must not be executed."""
    automatic: bool
    """Whether its attention backend was measured to be the fastest."""


def find(digest: str, *, automatic: bool = False) -> Path | None:
    """The library in the cache; None if there is none, or one that is damaged or that others can change.

    Args:
        digest: of the step's program.
        automatic: find only one whose attention backend was measured to be the fastest.
    """
    root = cache_folder()
    if root is None:
        return None
    path = root / "compiled" / f"{digest}.pt2"
    try:
        for folder in (root, path.parent):
            if _is_foreign(folder):
                _say_foreign(folder)
                return None
        if _is_foreign(path) or _is_foreign(path.with_suffix(".json")):
            return None
        note = msgspec.json.decode(read_regular(path.with_suffix(".json"), LARGEST_NOTE), type=_Note)
        library = read_regular(path, LARGEST_LIBRARY)
    except (OSError, FlashmoreError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    fits = hashlib.sha256(library).hexdigest() == note.sha256 and (note.automatic or not automatic)
    return path if fits else None


@cache
def _say_foreign(folder: Path) -> None:
    say(f"compiled steps in the cache are not used: others own or can change {folder}")


def _is_foreign(path: Path) -> bool:
    """Whether other users own or can change a file, whose code must then not be executed."""
    if os.name != "posix":
        return False
    status = path.lstat()
    if status.st_uid != os.getuid():
        return True
    if stat.S_ISLNK(status.st_mode):
        return _is_foreign(path.resolve())
    return bool(status.st_mode & _WRITABLE_BY_OTHERS)


def load(path: Path) -> Any:
    """Load a library, which PyTorch unpacks to a temporary folder.

    Raises:
        StorageError: that folder is full, or nothing can be executed from it.
    """
    try:
        # torch._inductor.aoti_load_package does the same, after importing the compiler, which takes a second.
        return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    except RuntimeError as error:
        valid = "a folder in $TMPDIR with free space and without noexec, or --speedups without compile"
        found = str(error).partition("\n")[0]
        raise StorageError("to load the compiled training step", found, valid) from error


def writable_folder() -> Path:
    """The folder for libraries, which is made if it is missing.

    Raises:
        StorageError: it cannot be written, others own or can change it, or there is no cache.
    """
    root = cache_folder()
    if root is None:
        raise StorageError("a cache folder", "no home folder", "a folder in $FLASHMORE_CACHE")
    folder = root / "compiled"
    with disk_errors(f"to write {folder}", folder):
        for path in (root, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_foreign(path):
                valid = f"chmod go-w {path}, or another folder in $FLASHMORE_CACHE"
                raise StorageError(
                    "a cache folder of your own", f"{path}, which others own or can change", valid
                )
        with TemporaryFile(dir=folder):
            pass
    return folder


def lock() -> FileIO | None:
    """The lock of the process that compiles for the cache in the background; None if there is one.

    It lasts until the file is closed, here and in the processes that inherited it. If the last one that held
    it failed, that is told.

    Raises:
        StorageError: see `writable_folder`.
    """
    path = writable_folder() / LOCK
    with disk_errors(f"to write {path}", path):
        file = open_regular(path, os.O_RDWR | os.O_CREAT)
        if not lock_descriptor(file.fileno(), blocking=False):
            file.close()
            return None
        if failure := file.read(LARGEST_NOTE):
            say(f"compiling in the background failed: {failure.decode(errors='replace')}")
        return file


def note_failure(text: str) -> None:
    """Leave the reason, or none if `text` is empty, to the next process that takes the lock."""
    with suppress(OSError, FlashmoreError), open_regular(writable_folder() / LOCK, os.O_WRONLY) as file:
        file.truncate(0)
        write_all(file, text.encode())


def keep(digest: str, library: Path, *, automatic: bool) -> None:
    """Put a library into the cache.

    Args:
        digest: of the step's program.
        automatic: whether its attention backend was measured to be the fastest.

    Raises:
        StorageError: see `writable_folder`.
    """
    path = writable_folder() / f"{digest}.pt2"
    data = library.read_bytes()
    note = _Note(hashlib.sha256(data).hexdigest(), automatic)
    with disk_errors(f"to write {path}", path):
        for name, content in ((path, data), (path.with_suffix(".json"), msgspec.json.encode(note))):
            replace_file(name, content)
            name.chmod(0o600)
        _remove_unused(path.parent)


def _remove_unused(folder: Path) -> None:
    libraries = sorted(folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in libraries[MOST_LIBRARIES:]:
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
    for path in folder.iterdir():
        old = is_temporary(path.name) and time.time() - path.stat().st_mtime > UNFINISHED_SECONDS
        if old:  # of a process that was killed
            path.unlink(missing_ok=True)
