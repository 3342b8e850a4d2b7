"""`flashmore pack`: a run as one file to hand on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import parse, require_writable
from flashmore.errors import ConfigError, RunError
from flashmore.terminal import say


@dataclass(frozen=True)
class Pack:
    """Pack a finished run into one file. `generate`, `score`, `compare` and `explain` open it like a folder.

    It contains the best weights, the vocabulary, the options and the result, but no items and no paths.
    """

    run: Positional[Path]
    """Folder of the run."""
    out: Path
    """File to write; it must not exist."""
    with_items: bool = False
    """Include the items and their weights, which are needed to tell new names from known ones."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore pack`."""
    command = parse(Pack, "pack", argv)
    require_writable("--out", command.out)
    if command.out.exists():  # it may be somebody's list
        raise ConfigError("a new file for --out", f"{command.out} exists", "another --out")

    from flashmore.runs import Run
    from flashmore.runs.pack import write
    from flashmore.training.result import result_of

    run = Run.open(command.run)
    if command.out.resolve().is_relative_to(command.run.resolve()):
        raise ConfigError("a file for --out outside the run's folder", str(command.out), "another --out")
    if (result := result_of(run)) is None:
        valid = f"finish it first: {run.resume_command()}"
        raise RunError(f"a finished run in {run.path}", "an interrupted run, which has no result yet", valid)
    command.out.parent.mkdir(parents=True, exist_ok=True)
    write(run, result.to_json(), command.out, with_items=command.with_items)
    say(f"packed {command.run} into {command.out}: {command.out.stat().st_size:,} bytes")
    return 0
