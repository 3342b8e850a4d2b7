"""One writer per run: a lock that the operating system releases whenever its process ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from io import FileIO
from pathlib import Path

from filelock import lock_descriptor

from flashmore.errors import RunError
from flashmore.files import disk_errors, open_regular, write_all

LOCK = "run.lock"
_LARGEST = 200
"""Most bytes read of a lock file, which names the process that holds it."""


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
        holder = (file.read(_LARGEST) or b"").decode("utf-8", "replace")
    raise RunError(
        f"the run {folder} for one process at a time",
        f"it is being written by {holder or 'another process'}",
        "the same command after that one has ended, or another folder",
    )


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
