"""Safe reading of untrusted files, and atomic writing.

An untrusted folder can contain symbolic links, named pipes, devices and hard links. Opening one of them would
read or overwrite another file, or block forever. `open_regular` opens none of them.
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

try:
    import fcntl
except ImportError:  # Windows
    _FULL_SYNC = None
else:
    _FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)
INTACT = "an intact copy of the run, or a new run"

_RANDOM_BYTES = 8
_TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}\.tmp", re.DOTALL)
_SPARSE_FROM, _MOST_SHRUNK = 2**28, 16
_KINDS = {"-": None, "l": "a symbolic link", "d": "a folder", "p": "a named pipe", "s": "a socket"}
"""By the first letter of `ls -l`; all others are devices."""
# Windows has neither flag, and needs O_BINARY to leave line endings alone.
_SAFE = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def cache_folder() -> Path | None:
    """$FLASHMORE_CACHE, or `flashmore` in the user's caches; None for a user without a home directory."""
    if named := os.environ.get("FLASHMORE_CACHE"):
        return Path(named)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "flashmore"
    with suppress(RuntimeError):
        return Path.home() / ".cache" / "flashmore"
    return None


def is_temporary(name: str) -> bool:
    """Whether this is the name of a temporary file left by a killed process; see `replacing`."""
    return _TEMPORARY.fullmatch(name) is not None


def is_of_no_file(encoding: str) -> bool:
    """Whether a Python encoding is not used for files; LookupError or ValueError if there is none."""
    # Two are for host names and take time quadratic in the length of the text; the third refuses every text.
    return codecs.lookup(encoding).name in ("punycode", "idna", "undefined")


@contextmanager
def disk_errors(wanted: str, path: Path) -> Iterator[None]:
    """Convert any `OSError` while doing `wanted` at `path` into a StorageError, which says what to do."""
    try:
        yield
    except OSError as error:
        valid = "a path on a working disk, with permission to use it"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            valid = f"more free space on the disk of {path}, or a larger quota"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            valid = "a folder with write permission"
        found = f"{error.filename or path}: {error.strerror or error}"
        raise StorageError(wanted, found, valid) from error


def _special(status: os.stat_result) -> str | None:
    """What a file is if it is not regular."""
    return _KINDS.get(stat.filemode(status.st_mode)[0], "a device")


def why_not_regular(status: os.stat_result) -> str | None:
    """Why a file must not be opened, such as `a symbolic link`; None for a regular file with one name."""
    if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
        return f"a file with {status.st_nlink} hard links"
    return _special(status)


def _why_sparse(descriptor: int) -> str | None:
    """Why a large file is not read: it is sparse, which is cheap to create and slow to read.

    A compressing filesystem also uses fewer blocks than bytes, but not that few.
    """
    status = os.fstat(descriptor)
    size, blocks = status.st_size, getattr(status, "st_blocks", None)  # Windows does not tell
    if blocks is None or size <= _SPARSE_FROM or _MOST_SHRUNK * 512 * blocks >= size:
        return None
    # Some network filesystems report no blocks; their files are not treated as sparse.
    first_hole = os.lseek(descriptor, 0, os.SEEK_HOLE) if hasattr(os, "SEEK_HOLE") else 0
    os.lseek(descriptor, 0, os.SEEK_SET)
    if first_hole == size:
        return None
    return f"a sparse file of {size:,} bytes, of which the disk stores {512 * blocks:,}"


def open_regular(path: Path, flags: int = os.O_RDONLY) -> FileIO:
    """Open a regular file with a single name, unbuffered; never follows a link or blocks on a pipe.

    Raises:
        RunError: `path` is not such a file, or is a large sparse file.
        OSError: it does not exist, or a disk operation failed.
    """

    def refuse(found: str | None) -> None:
        if found is not None:
            raise RunError(f"a regular file at {path}", found, INTACT)

    with suppress(FileNotFoundError):  # before opening, because opening a device can have side effects
        refuse(why_not_regular(os.lstat(path)))
    try:
        descriptor = os.open(path, flags | _SAFE, 0o666)
    except OSError as error:
        refuse("a symbolic link" if error.errno == errno.ELOOP else None)  # created in the meantime
        raise
    try:
        refuse(why_not_regular(os.fstat(descriptor)) or _why_sparse(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return FileIO(descriptor, "rb" if flags == os.O_RDONLY else "r+b")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert errors from reading a file of a run: RunError if it is lost, else StorageError."""
    with disk_errors(f"to read {path}", path):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"the file {path}", "it is missing", INTACT) from None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise RunError(f"the readable file {path}", "the disk cannot read it", INTACT) from error


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; the size is checked first.

    Raises:
        RunError: it is missing, larger, or not a regular file.
        StorageError: it cannot be read.
    """
    with reading(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise RunError(f"at most {limit:,} bytes in {path}", f"{size:,} bytes", INTACT)
        data = bytearray()
        while len(data) < size and (piece := file.read(size - len(data))):  # short reads are possible
            data += piece
        return bytes(data)


@contextmanager
def open_input(
    path: Path, wanted: str, valid: str = "the path of a readable file", *, again: bool = False
) -> Iterator[BinaryIO]:
    """Open a file named by the user; links are followed, because the user is trusted.

    `again` is for a file that is read more than once, now or when a run that names it is opened; others may
    be a pipe such as the shell's `<(...)`.

    Raises:
        DataError: it is missing, a folder, a device or unreadable; or, with `again`, a pipe, empty or sparse.
    """
    try:
        status = path.stat()
        found = _special(status)
        if found is None and again and status.st_size == 0:  # includes files generated by the kernel
            found = "an empty file"
        if found is not None and (again or found != "a named pipe"):
            raise DataError(wanted, found.replace("named pipe", "pipe, which can be read only once"), valid)
        with path.open("rb") as file:
            if again and (sparse := _why_sparse(file.fileno())):
                raise DataError(wanted, sparse, valid)
            yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise DataError(wanted, getattr(error, "strerror", None) or str(error), valid) from None


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` atomically; a StorageError if writing failed, and the old content is kept."""
    with disk_errors(f"to write {path}", path), replacing(path) as file:
        write_all(file, data)


@contextmanager
def replacing(path: Path) -> Iterator[FileIO]:
    """A temporary file that replaces `path` when the block ends without an error.

    Its name is unpredictable and must be unused, so that no file created beforehand receives the data.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM_BYTES)}.tmp")
    try:
        with open_regular(new, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
            yield file
            sync(file)
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
    sync_folder(path.parent)


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write all of `data`; writes to an unbuffered file may be short."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def sync(file: FileIO | int) -> None:
    """Flush a file or a descriptor to the disk itself, where the system can: on macOS, fsync does not."""
    if _FULL_SYNC is not None:
        with suppress(OSError):  # a file system that lacks it
            fcntl.fcntl(file, _FULL_SYNC)
            return
    os.fsync(file if isinstance(file, int) else file.fileno())


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk; not supported on Windows."""
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            sync(folder)
        finally:
            os.close(folder)
