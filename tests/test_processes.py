"""Which files start processes: each is checked for what a hostile working directory could do to it."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "flashmore"
START_PROCESSES = {
    "upgrade/verify/verifier.py",  # the lines of a place, read first, in a limited process elsewhere
    "upgrade/verify/runner.py",  # forks of that process, which run those lines
    "upgrade/search.py",  # our own search, several files at once, without the directory on the module path
    "training/warm.py",  # our own module, with the paths of this process and without the working directory
    "share/export.py",  # a new interpreter, which loads what was exported
    "upgrade/trace/tracer.py",  # the user's own example or script, because they asked for it
}
MODULES = {"subprocess", "multiprocessing", "concurrent.futures", "pty", "asyncio.subprocess"}
CALLS = ("os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.startfile")


def starts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found |= {node.module for alias in node.names if not alias.name.startswith(("Thread", "Future"))}
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith(CALLS):
            found.add(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix()
)
def test_few_files_start_processes(path: Path) -> None:
    assert bool(starts(path)) == (path.relative_to(SOURCE).as_posix() in START_PROCESSES), starts(path)
