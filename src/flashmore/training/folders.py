"""The folders of runs: which one a training uses, and the config that it holds."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from itertools import count
from pathlib import Path

from flashmore.config import CHANGEABLE, OPEN, TrainConfig
from flashmore.errors import RunError
from flashmore.files import INTACT, disk_errors
from flashmore.runs import Run, Settings, locked
from flashmore.runs.records import convert
from flashmore.runs.settings import is_run, require_same
from flashmore.training.result import result_of


def config_of(run: Run) -> TrainConfig:
    """The resolved config of a run.

    Raises:
        RunError: it is not a config of this flashmore version, a value is out of range, or it does not match
            the requested config.
    """
    wanted = f"the config of the run {run.path}"
    names = {field.name for field in fields(TrainConfig)}
    if odd := sorted(names ^ run.config.keys()):
        made_by = f"flashmore {run.settings.versions.get('flashmore', 'of another version')}"
        raise RunError(
            wanted, f"missing or unknown options: {', '.join(odd[:8])}", f"{made_by}, which made the run"
        )
    config = convert(run.config, TrainConfig, wanted)
    if odd := [name for name in OPEN if getattr(config, name) is None]:
        raise RunError(wanted, f"no value of {', '.join(odd)}", INTACT)
    asked = run.settings.requested
    free = {"speedups", *CHANGEABLE, *(name for name in OPEN if asked.get(name) is None)}
    odd = [name for name, value in run.config.items() if name not in free and asked.get(name) != value]
    if odd:
        raise RunError(wanted, f"values of {', '.join(odd)} that were not requested", INTACT)
    return config


def unused_folder(path: Path) -> Path:
    """The first of PATH, PATH-2, … that holds neither a run nor anything else."""
    return next(_unused_folders(path))


def _unused_folders(path: Path) -> Iterator[Path]:
    for number in count(1):
        other = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            if not is_run(other) and not other.is_symlink():
                yield other
        except RunError:  # occupied by something else
            continue


def started_before(asked: Settings, parent: Path) -> Path | None:
    """The newest unfinished run that the same command started, or else the newest finished one."""
    found = []
    with disk_errors(f"to look for runs in {parent}", parent):
        folders = sorted(parent.iterdir()) if parent.is_dir() else []
    for path in folders:
        try:
            run = Run.open(path)
            require_same(run.settings, asked, path)
        except RunError:  # another run, or none
            continue
        state = run.load_state(best_lost=True)
        found.append((result_of(run) is None, run.checkpoint(state.step).stat().st_mtime_ns, path))
    return max(found)[-1] if found else None


def holds_run(path: Path) -> bool:
    """As `is_run`; a dangling link is not a new folder either."""
    found = is_run(path)
    if not found and path.is_symlink() and not path.exists():
        raise RunError(f"a new or empty folder at {path}", "a broken link", "another path")
    return found


def lock_new(lock: ExitStack, path: Path, *, exactly: bool) -> Path:
    """Lock a new run's folder: this one, or else the first such in which no other process creates a run."""
    for other in [path] if exactly else _unused_folders(path):
        try:
            lock.enter_context(locked(other))
        except RunError:
            if exactly:
                raise
        else:
            return other
    raise AssertionError("there are endlessly many folders")
