"""The Python files of paths, and of the project that a file belongs to."""

import codecs
import os
import stat
import tokenize
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

LARGEST = 2**20
"""Bytes of the largest file that is read: more is data, and takes Python itself many seconds to parse.

Of the files of torch one has more: a table of tests, with 1.38 million.
"""
_NOT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_OF_NAMES = ("punycode", "idna")
"""Encodings that take a time that grows with the square of a text's length."""
MOST_FILES = 20_000
"""So many files of a project are looked at around those that are searched."""
_MARKERS = (".git", "pyproject.toml", "setup.py", "setup.cfg")
_SKIPPED = {
    ".git", ".hg", ".svn", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".tox", ".nox",
    ".ipynb_checkpoints",
}  # fmt: skip
_OTHERS = ("pyvenv.cfg", "conda-meta")
"""What lies in the root of an environment: other people's packages, unless a path names something in it."""


class Unreadable(Exception):
    """A file that is not read; the message says why."""


def content(path: Path) -> bytes:
    """The bytes of a regular file that is small enough to be a program.

    Raises:
        Unreadable: it is none, or the system refuses. A FIFO is not waited for, and no device is opened.
    """
    try:
        if not path.is_file():
            raise Unreadable(_no_file(path))
        # Asked again of what was opened, for another file may have taken its place.
        with os.fdopen(os.open(path, os.O_RDONLY | _NOT_WAITING), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Unreadable("it is not a file")
            data = file.read(LARGEST + 1) if size <= LARGEST else b""
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror or error}") from None
    if max(size, len(data)) > LARGEST:
        raise Unreadable(f"it has {size / 1e6:.1f} MB, which is more than a program that people write")
    return data


def decoded(data: bytes) -> tuple[str, str]:
    """A source's text with its line ends, and the encoding that its first lines name (PEP 263).

    Raises:
        Unreadable: there is no such encoding, it is none of texts, or the text does not give its bytes again.
    """
    try:
        encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
        if codecs.lookup(encoding).name in _OF_NAMES:
            raise Unreadable(f"its encoding is unclear: {encoding} is for names of hosts")
        source = data.decode(encoding)
        if source.encode(encoding) != data:
            raise Unreadable(f"its text does not give its bytes again, as {encoding}")
    except (SyntaxError, UnicodeError, LookupError) as error:
        raise Unreadable(f"its encoding is unclear: {error}") from None
    return source, encoding


def _no_file(path: Path) -> str:
    if path.is_symlink():
        return "it is a link that leads to no file"
    return "it is a folder that cannot be read" if is_folder(path) else "it is not a file"


def python_files(
    paths: Iterable[str | os.PathLike[str]], most: int | None = None, suffixes: tuple[str, ...] = (".py",)
) -> list[Path]:
    """Every Python file of the paths, each once, or the first of them.

    Folders are walked; links that lead round in a circle and environments that lie in a folder are not. A
    folder that cannot be read is given itself, so that it can be named.

    Args:
        paths: files, whatever they are called, and folders.
        most: how many of each folder.
        suffixes: how the names of a folder's files end.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        walked = _walk(path, set(), suffixes, outermost=True) if is_folder(path) else iter([path])
        for each in islice(walked, most):
            found.setdefault(real(each), each)
    return list(found.values())


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False also where that cannot be seen."""
    try:
        return path.is_dir()
    except OSError:
        return False


def project_files(path: Path, most: int = MOST_FILES) -> tuple[list[Path], Path | None]:
    """The files of the project around a path, and its folder where it has more than are looked at.

    The project is the nearest folder above with a `.git`, `pyproject.toml`, `setup.py` or `setup.cfg`. Where
    there is none: the package that a file is in, and what lies beside it.
    """
    here = real(path) if is_folder(path) else real(path).parent
    root = next((folder for folder in (here, *here.parents) if _is_root(folder)), None)
    if root is not None:
        found = python_files([root], most)
        return found, root if len(found) == most else None
    top = here
    while (top / "__init__.py").exists() and top.parent != top:
        top = top.parent
    package = top.joinpath(*here.relative_to(top).parts[:1])
    found = python_files([*sorted(top.glob("*.py")), *([package] if package != top else [])], most)
    return found, package if len(found) >= most else None


def real(path: Path) -> Path:
    """Where a path leads, links followed; the path itself where they lead round in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def _is_root(folder: Path) -> bool:
    try:
        return any((folder / name).exists() for name in _MARKERS)
    except OSError:
        return False


def _walk(
    folder: Path, above: set[Path], suffixes: tuple[str, ...], *, outermost: bool = False
) -> Iterator[Path]:
    here = real(folder)
    if here in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder
        return
    if not outermost and any(entry.name in _OTHERS for entry in entries):
        return
    for entry in entries:
        path = folder / entry.name
        try:
            below = entry.is_dir()
        except OSError:  # a link that leads back to itself
            below = False
        if below:
            if entry.name not in _SKIPPED:
                yield from _walk(path, {*above, here}, suffixes)
        elif entry.name.endswith(suffixes):
            yield path
