"""The Python files of paths, and of the project that a file belongs to."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

LARGEST = 10 * 1024 * 1024
"""Bytes of the largest file that is read: more is data or generated."""
MOST_FILES = 20_000
"""So many files of a project are looked at around those that are searched."""
_MARKERS = (".git", "pyproject.toml", "setup.py", "setup.cfg")
_SKIPPED = {
    ".git", ".hg", ".svn", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".tox", ".nox",
}  # fmt: skip
_OTHERS = ("pyvenv.cfg", "conda-meta")
"""What lies in the root of an environment: other people's packages, unless a path names something in it."""


def python_files(paths: Iterable[str | os.PathLike[str]], most: int | None = None) -> list[Path]:
    """Every Python file of the paths, each once, or the first of them.

    Folders are walked; links that lead round in a circle and environments that lie in a folder are not. A
    folder that cannot be read is given itself, so that it can be named.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        for each in islice(_walk(path, set(), outermost=True), most) if path.is_dir() else [path]:
            found.setdefault(real(each), each)
    return list(found.values())


def project_files(path: Path, most: int = MOST_FILES) -> tuple[list[Path], Path | None]:
    """The files of the project around a path, and its folder where it has more than are looked at.

    The project is the nearest folder above with a `.git`, `pyproject.toml`, `setup.py` or `setup.cfg`. Where
    there is none: the package that a file is in, and what lies beside it.
    """
    here = real(path) if path.is_dir() else real(path).parent
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


def _walk(folder: Path, above: set[Path], *, outermost: bool = False) -> Iterator[Path]:
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
            is_folder = entry.is_dir()
        except OSError:  # a link that leads back to itself
            is_folder = False
        if is_folder:
            if entry.name not in _SKIPPED:
                yield from _walk(path, {*above, here})
        elif entry.name.endswith(".py"):
            yield path
