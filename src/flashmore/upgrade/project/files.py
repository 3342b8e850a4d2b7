"""The Python files of paths, and of the project that a file belongs to."""

import os
import stat
import tokenize
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

from flashmore.files import is_of_no_file
from flashmore.upgrade.site import NotRead

LARGEST = 2**20
"""Bytes of the largest file that is read: more is data, and takes Python itself many seconds to parse.

Of the files of torch one has more: a table of tests, with 1.38 million.
"""
_NOT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
MOST_FILES = 20_000
"""So many files of a project are looked at around those that are searched."""
MOST_ENTRIES = 2_000_000
"""So many names in the folders below a path are looked at; a large set of images has 1.3 million."""
MOST_LINKS = 10_000
"""So many links below a path are looked at: to tell where these lead takes half a second."""
DEEPEST = 100
"""So many folders below a path may lie in each other."""
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
        raise Unreadable(f"it has {size / 1e6:.1f} MB, which is too large for hand-written code")
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


def _no_file(path: Path) -> str:
    if path.is_symlink():
        return "it is a broken link"
    return "it is not a file"


def python_files(
    paths: Iterable[str | os.PathLike[str]], suffixes: tuple[str, ...] = (".py",)
) -> tuple[list[Path], list[NotRead]]:
    """Every Python file of the paths, each once, and what lies in their folders and is not read.

    A path itself may be a link. A link in a folder is followed if it leads to a file in one of the folders
    that are walked; none that leads out of all paths is. Environments that lie in a folder are not walked.

    Args:
        paths: files, whatever they are called, and folders.
        suffixes: how the names of a folder's files end.
    """
    given = [Path(path) for path in paths]
    walk = _Walk([real(path) for path in given], suffixes)
    for path in given:
        if is_folder(path):
            walk.folder(path)
        else:
            walk.found.setdefault(real(path), path)
    return walk.files(), walk.not_read


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


def project_files(path: Path, most: int = MOST_FILES) -> tuple[list[Path], list[NotRead]]:
    """The files of the project around a path, and what of it is not read.

    The project is the nearest folder above with a `.git`, `pyproject.toml`, `setup.py` or `setup.cfg`. Where
    there is none: the package that a file is in, and what lies beside it.
    """
    here, root = real(path) if is_folder(path) else real(path).parent, root_of(path)
    if root is not None:
        walk = _Walk([root], (".py",), most)
        walk.folder(root)
        return walk.files(), walk.not_read
    top = here
    while (top / "__init__.py").exists() and top.parent != top:
        top = top.parent
    walk = _Walk([top], (".py",), most)
    walk.folder(top, below=False)
    package = top.joinpath(*here.relative_to(top).parts[:1])
    if package != top:
        walk.folder(package)
    return walk.files(), walk.not_read


def root_of(path: Path) -> Path | None:
    """The project's folder around a path: the nearest with a `.git`, `pyproject.toml` or the like."""
    here = real(path) if is_folder(path) else real(path).parent
    return next((folder for folder in (here, *here.parents) if _is_root(folder)), None)


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


class _Walk:
    """Walks folders, each once, and follows no link to a folder: one that stays inside leads to nothing new.

    Args:
        inside: resolved paths; what is in none of them is not read.
        suffixes: how the names of files end.
        most: how many files are looked for; None for all.
    """

    def __init__(self, inside: Sequence[Path], suffixes: tuple[str, ...], most: int | None = None) -> None:
        self.found: dict[Path, Path] = {}
        """By where it leads: a file as it was named."""
        self.not_read: list[NotRead] = []
        self._inside = inside
        self._suffixes = suffixes
        self._most = most
        self._walked: set[Path] = set()
        self._links: list[tuple[Path, Path]] = []
        self._entries_left = 0
        self._links_left = 0

    def files(self) -> list[Path]:
        """Every file that was found, and after them what links lead to beside them."""
        for path, target in self._links:
            if is_folder(target):
                searched = target in self._walked
            else:  # one that leads to no file is told apart when it is read
                searched = target.parent in self._walked or target in self.found or not target.is_file()
                if searched:
                    self.found.setdefault(target, path)
            if not searched:  # an environment, or a folder that is never searched
                self._leave(
                    path, f"it is a link to {target}, which is not searched; give that path to search it"
                )
        self._links = []
        return list(self.found.values())

    def folder(self, top: Path, *, below: bool = True) -> None:
        """Look for files in a folder, and in those below it."""
        self._entries_left, self._links_left = MOST_ENTRIES, MOST_LINKS
        ahead = [(top, real(top), 0, True)]
        while ahead:
            path, at, depth, walk = ahead.pop()
            if not walk:
                if self._most is not None and len(self.found) >= self._most:
                    return self._leave(top, f"it has more than {self._most:,} files; the others are skipped")
                self.found.setdefault(at, path)
            elif depth > DEEPEST:
                self._leave(path, f"it lies more than {DEEPEST} folders deep; give its path to search it")
            elif at not in self._walked:
                names = self._names(path, at, outermost=depth == 0, below=below)
                if self._entries_left < 0:
                    valid = f"{path} and what follows are not searched; give paths of folders in it"
                    return self._leave(top, f"it has more than {MOST_ENTRIES:,} files and folders; {valid}")
                ahead += [
                    (path / name, at / name, depth + 1, leads_on)
                    for name, leads_on in sorted(names, reverse=True)
                ]
        return None

    def _names(self, folder: Path, at: Path, *, outermost: bool, below: bool) -> list[tuple[str, bool]]:
        """The names of a folder's files and folders, and which are folders; none where it is an environment.

        Its links are looked at, and kept for the end.
        """
        names, links = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._entries_left -= 1
                    if self._entries_left < 0 or (entry.name in _OTHERS and not outermost):
                        return []
                    if entry.is_symlink():
                        links.append(entry.name)
                    elif entry.is_dir(follow_symlinks=False):
                        if below and entry.name not in _SKIPPED:
                            names.append((entry.name, True))
                    elif entry.name.endswith(self._suffixes):
                        names.append((entry.name, False))
        except OSError as error:
            self._leave(folder, f"it is a folder that cannot be read: {error.strerror or error}")
            return []
        self._walked.add(at)
        for name in sorted(links):
            self._links_left -= 1
            if self._links_left < 0:
                if self._links_left == -1:  # told once for all that follow
                    found = f"it is one of more than {MOST_LINKS:,} links, and the rest are skipped"
                    self._leave(folder / name, f"{found}; give the paths of their targets to search them")
                break
            path, target = folder / name, real(at / name)
            if (below and name not in _SKIPPED) if is_folder(path) else name.endswith(self._suffixes):
                self._see_link(path, target)
        return names

    def _see_link(self, path: Path, target: Path) -> None:
        if not any(target.is_relative_to(root) for root in self._inside):
            out = f"it is a link to {target}, which is outside the given paths"
            self._leave(path, f"{out}; give that path to search it")
        else:
            self._links.append((path, target))

    def _leave(self, path: Path, reason: str) -> None:
        self.not_read.append(NotRead(str(path), reason))
