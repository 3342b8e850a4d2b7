"""Reads what a file holds, if it may be a program; resolves paths that may lead round in a circle."""

import os
import stat
import tokenize
from io import BytesIO
from pathlib import Path

from flashmore.files import is_of_no_file

LARGEST = 2**20
"""Bytes of the largest file that is read: more is data, and takes Python itself many seconds to parse.

Of the files of torch one has more: a table of tests, with 1.38 million.
"""
_NOT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class Unreadable(Exception):
    """A file that is not read; the message says why."""


def content(path: Path, most: int = LARGEST) -> bytes:
    """The bytes of a regular file that is small enough to be a program.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        Unreadable: it is none, or the system refuses. A FIFO is not waited for, and no device is opened.
    """
    try:
        if not path.is_file():
            raise Unreadable("it is a broken link" if path.is_symlink() else "it is not a file")
        # Asked again of what was opened, for another file may have taken its place.
        with os.fdopen(os.open(path, os.O_RDONLY | _NOT_WAITING), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Unreadable("it is not a file")
            data = file.read(most + 1) if size <= most else b""
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror or error}") from None
    if max(size, len(data)) > most:
        raise Unreadable(
            f"it has {size / 1e6:.1f} MB, and only files of at most {most / 1e6:.0f} MB are read"
        )
    return data


def decoded(data: bytes) -> tuple[str, str]:
    """A source's text with its line ends, and the encoding that its first lines name (PEP 263).

    Raises:
        Unreadable: there is no such encoding, it is none of texts, or the text does not give its bytes again.
    """
    try:
        encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
        if is_of_no_file(encoding):
            raise Unreadable(f"its encoding is unclear: {encoding} is not an encoding of files")
        source = data.decode(encoding)
        if source.encode(encoding) != data:
            raise Unreadable(f"decoding and encoding it as {encoding} does not give the same bytes")
    except (SyntaxError, UnicodeError, LookupError) as error:
        raise Unreadable(f"its encoding is unclear: {error}") from None
    return source, encoding


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False also where that cannot be seen."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether a path is a file; False also where that cannot be seen."""
    try:
        return path.is_file()
    except OSError:
        return False


def exists(path: Path) -> bool:
    """Whether there is something at a path; False also where that cannot be seen."""
    try:
        return path.exists()
    except OSError:
        return False


def real(path: Path) -> Path:
    """Where a path leads, links followed; the path itself where they lead round in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def folder_of(path: Path) -> Path:
    """The folder that a path is, or that it lies in, links followed."""
    return real(path) if is_folder(path) else real(path).parent
