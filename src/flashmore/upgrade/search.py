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
from flashmore.upgrade.project.files import LARGEST, python_files
from flashmore.upgrade.project.linked import Project
from flashmore.upgrade.site import NotParsed, Searched

MANY = 64
"""Fewer files are searched in this process: starting another takes longer."""
_WORTH = re.compile(
    rb"[sS]oftmax|scaled_dot_product|multi_head_attention_forward|memory_efficient_attention|flash_attn|flex_att"
)


def read(path: Path) -> tuple[bytes, str, str] | NotParsed:
    """A file's bytes, its text with its line ends, and the encoding that its first lines name (PEP 263)."""
    try:
        if not path.is_file():
            return NotParsed(str(path), _no_file(path))
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
        source = data.decode(encoding)
        if source.encode(encoding) != data:
            return NotParsed(str(path), f"its text does not give its bytes again, as {encoding}")
    except (SyntaxError, UnicodeError, LookupError) as error:
        return NotParsed(str(path), f"its encoding is unclear: {error}")
    return data, source, encoding


def _no_file(path: Path) -> str:
    if path.is_symlink():
        return "it is a link that leads to no file"
    return "it is a folder that cannot be read" if path.is_dir() else "it is not a file"


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

    Places that the project around them differentiates twice are refused; see `project/linked.py`.

    Args:
        paths: files and folders.
        processes: how many processes share a large number of files.
        progress: called with how many files are done, and of how many.
    """
    given = [Path(path) for path in paths]
    files = python_files(given)
    project = Project(given, files)
    for done, result in enumerate(_results(files, processes), start=1):
        if progress is not None:
            progress(done, len(files))
        yield result if isinstance(result, NotParsed) else project.judged(result)


def _results(files: Sequence[Path], processes: int) -> Iterator[Searched | NotParsed]:
    if processes < 2 or len(files) < MANY:
        yield from map(search_file, files)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(search_file, files, chunksize=16)
