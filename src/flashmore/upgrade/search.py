"""Searches files and folders for hand-written attention: each once, whatever is wrong with the others."""

import ast
import os
import re
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

from flashmore.upgrade.find import find_sites
from flashmore.upgrade.site import NotParsed, Searched

LARGEST = 10 * 1024 * 1024
"""Bytes of the largest file that is read: more is data or generated."""
MANY = 64
"""Fewer files are searched in this process: starting another takes longer."""
_SKIPPED = {
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".tox",
    ".nox",
}
_WORTH = re.compile(
    rb"[sS]oftmax|scaled_dot_product|multi_head_attention_forward|memory_efficient_attention|flash_attn|flex_att"
)


def python_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Every Python file of the paths, each once: folders are walked, links that lead round in a circle are
    not."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        for each in _walk(path, set()) if path.is_dir() else [path]:
            found.setdefault(_real(each), each)
    return list(found.values())


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def _walk(folder: Path, above: set[Path]) -> Iterator[Path]:
    real = _real(folder)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = folder / entry.name
        try:
            is_folder = entry.is_dir()
        except OSError:
            continue
        if is_folder:
            if entry.name not in _SKIPPED:
                yield from _walk(path, {*above, real})
        elif entry.name.endswith(".py"):
            yield path


def read(path: Path) -> tuple[bytes, str, str] | NotParsed:
    """A file's bytes, its text with its line ends, and the encoding that its first lines name (PEP 263)."""
    try:
        if not path.is_file():
            return NotParsed(str(path), "it is not a file")
        size = path.stat().st_size
        if size > LARGEST:
            return NotParsed(
                str(path), f"it has {size / 1e6:.0f} MB, which is more than a program that people write"
            )
        data = path.read_bytes()
    except OSError as error:
        return NotParsed(str(path), f"it cannot be read: {error.strerror or error}")
    try:
        encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
        return data, data.decode(encoding), encoding
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        return NotParsed(str(path), f"its encoding is unclear: {error}")


def search_file(path: Path) -> Searched | NotParsed:
    """What is found in one file."""
    found = read(path)
    if isinstance(found, NotParsed):
        return found
    data, source, encoding = found
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not _WORTH.search(data):
                ast.parse(source)
                return Searched(str(path), source, data, encoding, ())
            sites = find_sites(source, str(path))
    except SyntaxError as error:
        line = f" in line {error.lineno}" if error.lineno else ""
        return NotParsed(str(path), f"it is not Python of this version: {error.msg}{line}")
    except (ValueError, RecursionError, MemoryError) as error:
        return NotParsed(str(path), f"it cannot be parsed: {type(error).__name__}: {error}")
    return Searched(str(path), source, data, encoding, tuple(sites))


def search(
    paths: Iterable[str | os.PathLike[str]],
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Searched | NotParsed]:
    """Every Python file of the paths, in order, with what was found in it.

    Args:
        paths: files and folders.
        processes: how many processes share a large number of files.
        progress: called with how many files are done, and of how many.
    """
    files = python_files(paths)
    for done, result in enumerate(_results(files, processes), start=1):
        if progress is not None:
            progress(done, len(files))
        yield result


def _results(files: Sequence[Path], processes: int) -> Iterator[Searched | NotParsed]:
    if processes < 2 or len(files) < MANY:
        yield from map(search_file, files)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(search_file, files, chunksize=16)
