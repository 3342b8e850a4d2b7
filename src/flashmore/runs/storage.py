"""Files that are whole or absent, and what to tell when the disk refuses."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flashmore.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def disk_errors(wanted: str, path: Path) -> Iterator[None]:
    """Tell of what the operating system refuses while `wanted` is done at `path`.

    Raises:
        StorageError: any `OSError` inside, with its cause and what to do about it.
    """
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno in _FULL:
            valid = f"free space on the disk (or the quota) that holds {path}, then try again"
        elif error.errno in _FORBIDDEN:
            valid = "a folder that you may write, or write permission for this one"
        else:
            valid = "a path on a disk that works and that you may use"
        raise StorageError(wanted, f"{error.filename or path}: {cause}", valid) from error


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder; Windows does not let a program ask for that."""
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step: whoever reads it meets the old content or the new, never a part.

    Raises:
        StorageError: the disk refused; the old content is still there.
    """
    with disk_errors(f"to write {path}", path):
        # One fixed name: what a killed process left there is overwritten, so that nothing piles up.
        new = path.with_name(path.name + ".new")
        try:
            write_file(new, data)
            new.replace(path)
        except BaseException:
            with suppress(OSError):
                new.unlink()
            raise
        sync_folder(path.parent)


def write_folder(path: Path, files: dict[str, bytes]) -> None:
    """Write files, in their order, into a new or empty folder: all of them, or none and no folder.

    Raises:
        StorageError: the disk refused; the files and the folders made for them are gone again.
    """
    made: list[Path] = []
    with disk_errors(f"to make the folder {path}", path):
        try:
            made = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                replace_file(path / name, data)
        except BaseException:
            for name in files:
                with suppress(OSError):
                    (path / name).unlink()
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
            raise
