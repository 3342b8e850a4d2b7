"""Searches files and folders for hand-written attention: each once, whatever is wrong with the others."""

import ast
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from flashmore.upgrade.find import find_sites
from flashmore.upgrade.project.definitions import Definitions
from flashmore.upgrade.project.files import Unreadable, content, decoded, python_files
from flashmore.upgrade.project.linked import Project
from flashmore.upgrade.site import NotRead, Searched

NOTEBOOK = ".ipynb"
MANY = 64
"""Fewer files are searched in this process: starting another takes longer."""
_WORTH = re.compile(
    rb"[sS]oftmax|scaled_dot_product|multi_head_attention_forward|memory_efficient_attention|flash_attn|flex_att"
    rb"|\bexp\("
)


def _why_not_python(path: Path, data: bytes) -> str | None:
    """What a file is instead of Python source, by its name; None where it may be that."""
    suffix = path.suffix.lower()
    if suffix in ("", ".py", ".pyw", ".pyi") or b"python" in data[:128].partition(b"\n")[0]:
        return None
    return f"its name ends in {path.suffix}, and only Python files are searched"


def read(path: Path) -> tuple[bytes, str, str] | NotRead:
    """A file's bytes, its text with its line ends, and the encoding that its first lines name (PEP 263)."""
    if path.suffix.lower() == NOTEBOOK:
        advice = "`jupyter nbconvert --to script` converts it to a Python file"
        return NotRead(str(path), f"it is a notebook; {advice}")
    try:
        data = content(path)
        if (other := _why_not_python(path, data)) is not None:
            return NotRead(str(path), other)
        return data, *decoded(data)
    except Unreadable as error:
        return NotRead(str(path), str(error))


def search_file(path: Path) -> Searched | NotRead:
    """What is found in one file."""
    found = read(path)
    if isinstance(found, NotRead):
        return found
    data, source, encoding = found
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not _WORTH.search(data):
                ast.parse(source)
                return Searched(str(path), source, data, encoding, ())
            sites = find_sites(source, str(path), Definitions(path))
    except SyntaxError as error:
        line = f" in line {error.lineno}" if error.lineno else ""
        return NotRead(str(path), f"it is not valid for this version of Python: {error.msg}{line}")
    except (RecursionError, MemoryError):  # the parser's own stack is a kind of memory to Python
        return NotRead(str(path), "it is nested too deeply to be parsed")
    except ValueError as error:
        return NotRead(str(path), f"it cannot be parsed: {type(error).__name__}: {error}")
    return Searched(str(path), source, data, encoding, tuple(sites))


def search(
    paths: Iterable[str | os.PathLike[str]],
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Searched | NotRead]:
    """Every Python file of the paths, in order, with what was found in it; at last, what is not walked.

    A notebook is named and not read.

    Places that the project around them differentiates twice are refused; see `project/linked.py`.

    Args:
        paths: files and folders.
        processes: how many processes share a large number of files.
        progress: called with how many files are done, and of how many.
    """
    given = [Path(path) for path in paths]
    files, not_read = python_files(given, suffixes=(".py", NOTEBOOK))
    project = Project(given, [path for path in files if path.suffix != NOTEBOOK])
    for done, result in enumerate(_results(files, processes), start=1):
        if progress is not None:
            progress(done, len(files))
        yield result if isinstance(result, NotRead) else project.judged(result)
    yield from not_read


def _results(files: Sequence[Path], processes: int) -> Iterator[Searched | NotRead]:
    if processes < 2 or len(files) < MANY:
        yield from map(search_file, files)
        return
    with _safe_path(), ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        with _ctrl_c_deferred():
            results = pool.map(search_file, files, chunksize=16)
        try:
            yield from results
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _ctrl_c_deferred() -> Iterator[None]:
    """Processes that start here leave Ctrl-C, which a terminal sends to all, to this one: it acts later."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the processes inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _safe_path() -> Iterator[None]:
    """Keep the working directory off the module path of the processes that start.

    Python starts them with `-c`, and would import a `pickle.py` from there.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
