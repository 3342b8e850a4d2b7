"""Searches files and folders for what the rules replace: each once, whatever is wrong with the others."""

import ast
import gc
import os
import signal
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from flashmore.upgrade.find import find_sites, is_worth_parsing
from flashmore.upgrade.isolated import end_with_parent
from flashmore.upgrade.notebooks.notebook import LARGEST_NOTEBOOK, SUFFIX, is_notebook, read_notebook
from flashmore.upgrade.project.definitions import Definitions
from flashmore.upgrade.project.files import LARGEST, Unreadable, content, decoded
from flashmore.upgrade.project.linked import Project
from flashmore.upgrade.project.walk import python_files
from flashmore.upgrade.rules import CODES
from flashmore.upgrade.settings import Settings
from flashmore.upgrade.site import NotRead, Searched
from flashmore.upgrade.suppressions import Suppressions

MANY = 64
"""Fewer files are searched in this process: starting another takes longer."""


def _why_not_python(path: Path, data: bytes) -> str | None:
    """What a file is instead of Python source, by its name; None where it may be that."""
    suffix = path.suffix.lower()
    if suffix in ("", ".py", ".pyw", ".pyi") or b"python" in data[:128].partition(b"\n")[0]:
        return None
    return f"its name ends in {path.suffix}, and only Python files are searched"


def search_file(path: Path, codes: Collection[str] = CODES) -> Searched | NotRead:
    """What is found in one file."""
    try:
        data = content(path, LARGEST_NOTEBOOK if is_notebook(path) else LARGEST)
    except Unreadable as error:
        return NotRead(str(path), str(error))
    return search_source(path, data, codes)


def _read(path: Path, data: bytes) -> Searched:
    """A file or a notebook, with no places yet."""
    if is_notebook(path):
        notebook = read_notebook(data)
        return Searched(str(path), notebook.source, data, "utf-8", (), notebook=notebook)
    if (other := _why_not_python(path, data)) is not None:
        raise Unreadable(other)
    source, encoding = decoded(data)
    return Searched(str(path), source, data, encoding, ())


def search_source(path: Path, data: bytes, codes: Collection[str] = CODES) -> Searched | NotRead:
    """What is found in the bytes of a file that is not read itself.

    Args:
        path: what the file is called.
        data: its bytes, as of a file.
        codes: the rules to search for.
    """
    try:
        found = _read(path, data)
    except Unreadable as error:
        return NotRead(str(path), str(error))
    notebook = found.notebook
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not is_worth_parsing(data if notebook is None else found.source.encode()):
                ast.parse(found.source)
                return found
            sites = find_sites(found.source, str(path), codes, Definitions(path))
            comments = Suppressions(found.source)
    except SyntaxError as error:
        line = f" in line {error.lineno}" if error.lineno else ""
        return NotRead(str(path), f"it is not valid for this version of Python: {error.msg}{line}")
    except (RecursionError, MemoryError):  # the parser's own stack is a kind of memory to Python
        return NotRead(str(path), "it is nested too deeply to be parsed")
    except ValueError as error:
        return NotRead(str(path), f"it cannot be parsed: {type(error).__name__}: {error}")
    kept, remarks = comments.kept(sites), comments.remarks
    if notebook is not None:
        kept, remarks = list(map(notebook.placed, kept)), list(map(notebook.worded, remarks))
    return replace(found, sites=tuple(kept), ignored=len(sites) - len(kept), remarks=tuple(remarks))


def search(
    paths: Iterable[str | os.PathLike[str]],
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
    settings: Settings | None = None,
    *,
    force_exclude: bool = False,
) -> Iterator[Searched | NotRead]:
    """Every Python file and notebook of the paths, in order, with its places; at last, what is not walked.

    Places that the project around them differentiates twice are refused; see `project/linked.py`.

    Args:
        paths: files and folders.
        processes: how many processes share a large number of files.
        progress: called with how many files are done, and of how many.
        settings: what is left out, and which rules apply; by default nothing, and all.
        force_exclude: whether paths that the settings exclude are left out, too.
    """
    given, settings = [Path(path) for path in paths], settings or Settings()
    files, not_read = python_files(given, (".py", SUFFIX), settings.exclude, force_exclude=force_exclude)
    project = Project(given, files, settings.target_torch)
    codes = [settings.codes_in(path) for path in files]
    for done, result in enumerate(_results(files, codes, processes), start=1):
        if progress is not None:
            progress(done, len(files))
        yield result if isinstance(result, NotRead) else project.judged(result)
    yield from not_read


def search_stdin(path: Path, data: bytes, settings: Settings) -> Searched | NotRead:
    """What is found in a source that is not in its file, or not yet.

    Args:
        path: the file that it belongs to, which need not exist.
        data: its bytes.
        settings: which rules apply.
    """
    found = search_source(path, data, settings.codes_in(path))
    return (
        found if isinstance(found, NotRead) else Project([path], [path], settings.target_torch).judged(found)
    )


def _results(
    files: Sequence[Path], codes: Sequence[Collection[str]], processes: int
) -> Iterator[Searched | NotRead]:
    if processes < 2 or len(files) < MANY:
        yield from map(search_file, files, codes)
        return
    context, ours = get_context("spawn"), os.getpid()
    with _safe_path(), ProcessPoolExecutor(processes, context, _begin, (ours,)) as pool:
        try:
            with _ctrl_c_deferred():
                results = pool.map(search_file, files, codes)
            yield from results
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for the files that are begun
            raise


def _begin(parent: int) -> None:
    """Prepare a process that searches: it makes many small objects, most of which live as long as a file."""
    end_with_parent(parent)
    gc.set_threshold(50_000)


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
