"""Reading and writing files that others may have prepared: whole or absent, and never through a link.

A folder that came from somebody else can hold symbolic links, named pipes, devices and hard links. Opening
one of them would read or overwrite another file, or wait for ever. `open_regular` opens none of them.
"""

import codecs
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from flashmore.errors import DataError, RunError, StorageError

INTACT = "the run as flashmore wrote it: copy it again from where it is intact, or train anew"

_RANDOM_BYTES = 8
_TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}\.tmp", re.DOTALL)
_OF_NO_FILE = ("punycode", "idna", "undefined")
"""Encodings that Python knows and no file is written in: two are for names of hosts, and take a time that
grows with the square of a text's length; the third refuses every text."""
_SPARSE_FROM, _MOST_SHRUNK = 2**28, 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Windows has neither flag, and needs O_BINARY to leave line ends alone.
_SAFE = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def cache_folder() -> Path | None:
    """Where flashmore keeps what it may make again: $FLASHMORE_CACHE, or `flashmore` in the user's caches.

    None for a user without a home.
    """
    named, caches = os.environ.get("FLASHMORE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    if caches:
        return Path(caches) / "flashmore"
    with suppress(RuntimeError):
        return Path.home() / ".cache" / "flashmore"
    return None


def is_temporary(name: str) -> bool:
    """Whether a file of this name was being written when a process died; see `replacing`."""
    return _TEMPORARY.fullmatch(name) is not None


def is_of_no_file(encoding: str) -> bool:
    """Whether Python knows an encoding that no file is written in.

    Raises:
        LookupError, ValueError: Python knows no encoding of that name.
    """
    return codecs.lookup(encoding).name in _OF_NO_FILE


@contextmanager
def disk_errors(wanted: str, path: Path) -> Iterator[None]:
    """Report what the operating system refuses while `wanted` is done at `path`.

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


def why_not_regular(status: os.stat_result) -> str | None:
    """Why a file may not be opened, such as `a symbolic link`; None for a regular file with one name."""
    for is_kind, name in _KINDS:
        if is_kind(status.st_mode):
            return name
    if status.st_nlink > 1:
        return f"a file with {status.st_nlink} hard links, which may be another file too"
    return None


def open_regular(path: Path, flags: int = os.O_RDONLY) -> FileIO:
    """Open a regular file that has no other name; a link is not followed, and a pipe is not waited for.

    Args:
        path: the file.
        flags: of `os.open`; O_CREAT makes the file where there is none.

    Returns:
        The file, unbuffered.

    Raises:
        RunError: something else is at `path`, or a large file that is nearly all holes.
        OSError: there is nothing, or the disk refused.
    """
    wanted = f"a regular file at {path}"
    with suppress(FileNotFoundError):  # before opening, because opening a device can already act on it
        _require_regular(wanted, os.lstat(path))
    try:
        descriptor = os.open(path, flags | _SAFE, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:  # the link was made in the meantime
            raise RunError(wanted, "a symbolic link", INTACT) from None
        raise
    try:
        _require_regular(wanted, os.fstat(descriptor))
        if sparse := _why_sparse(descriptor):
            raise RunError(wanted, sparse, INTACT)
    except BaseException:
        os.close(descriptor)
        raise
    return FileIO(descriptor, "rb" if flags == os.O_RDONLY else "r+b")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Report why a file of a run cannot be read.

    Raises:
        RunError: it is missing.
        StorageError: the disk refused.
    """
    with disk_errors(f"to read {path}", path):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"the file {path}", "it is missing", INTACT) from None


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; its size is looked at first.

    Raises:
        RunError: it is missing, larger, or no regular file.
        StorageError: it cannot be read.
    """
    with reading(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise RunError(f"at most {limit:,} bytes in {path}", f"{size:,} bytes", INTACT)
        data = bytearray()
        while len(data) < size and (piece := file.read(size - len(data))):  # it may give less at once
            data += piece
        return bytes(data)


@contextmanager
def open_input(
    path: Path, wanted: str, valid: str = "the path of a file that you may read", *, again: bool = False
) -> Iterator[BinaryIO]:
    """Open a file that a user named; links are followed, because they are the user's.

    Args:
        path: the file; a pipe such as the shell's `<(...)` is read once.
        wanted: what a message says was expected.
        valid: what it says would be accepted.
        again: whether the file is read more than once, now or when a run that names it is opened, so that a
            pipe cannot be taken, and nothing that has no content of its own.

    Raises:
        DataError: it is missing, a folder, a device or unreadable; or, where it would be read again, a pipe,
            empty or sparse.
    """
    try:
        status = path.stat()
        found = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), None)
        if found is None and again and status.st_size == 0:  # files that the kernel makes up, too
            found = "an empty file"
        if found is not None and (again or found != "a named pipe"):
            raise DataError(wanted, found.replace("named pipe", "pipe, which can be read only once"), valid)
        with path.open("rb") as file:
            if again and (sparse := _why_sparse(file.fileno())):
                raise DataError(wanted, sparse, valid)
            yield file
    except OSError as error:
        raise DataError(wanted, error.strerror or str(error), valid) from None
    except ValueError as error:  # a NUL character in the path
        raise DataError(wanted, str(error), valid) from None


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step: whoever reads it meets the old content or the new, never a part.

    Raises:
        StorageError: the disk refused; the old content is still there.
    """
    with disk_errors(f"to write {path}", path), replacing(path) as file:
        write_all(file, data)


@contextmanager
def replacing(path: Path) -> Iterator[FileIO]:
    """A new file that takes the place of `path` when the block ends without an error.

    Its name is unpredictable and must be unused, so that nothing prepared beforehand receives the data.

    Raises:
        OSError: the disk refused; what was at `path` is still there.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM_BYTES)}.tmp")
    try:
        with open_regular(new, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
            yield file
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
    sync_folder(path.parent)


def write_all(file: FileIO, data: bytes) -> None:
    """Write all of `data`; an unbuffered file may take less at once."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder; Windows does not let a program ask for that."""
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _why_sparse(descriptor: int) -> str | None:
    """Why a large file is not read: it is nearly all holes, which cost nothing to make and long to read.

    A filesystem that compresses needs fewer blocks than bytes too, but not so few.
    """
    status = os.fstat(descriptor)
    size, blocks = status.st_size, getattr(status, "st_blocks", None)  # Windows does not tell
    if blocks is None or size <= _SPARSE_FROM or _MOST_SHRUNK * 512 * blocks >= size:
        return None
    # Some network filesystems tell no blocks, and then no holes either.
    first_hole = os.lseek(descriptor, 0, os.SEEK_HOLE) if hasattr(os, "SEEK_HOLE") else 0
    os.lseek(descriptor, 0, os.SEEK_SET)
    if first_hole == size:
        return None
    return f"a sparse file of {size:,} bytes, of which the disk holds {512 * blocks:,}"


def _require_regular(wanted: str, status: os.stat_result) -> None:
    found = why_not_regular(status)
    if found is not None:
        raise RunError(wanted, found, INTACT)
