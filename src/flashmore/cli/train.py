"""`flashmore train`: train on a file of names or one long text."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flashmore.cli.ineffective import refuse_ineffective
from flashmore.cli.parse import defaults, parse, parse_known, value_of
from flashmore.cli.show import stdout, table
from flashmore.config import TrainConfig
from flashmore.errors import ConfigError
from flashmore.terminal import write_json

if TYPE_CHECKING:
    from flashmore.training.result import TrainResult


@dataclass(frozen=True)
class Train:
    """Train on a file of names, one per line (default: the built-in names), and save a run's folder.

    With --mode text the file is one long text, split into windows of --block-size characters.

    `flashmore train --resume RUN` resumes an interrupted run, with no options except --max-steps and --json.
    """

    config: TrainConfig
    """Data, model and training; --model and --preset decide some of the defaults."""
    out: Path | None = None
    """The run's folder, new or empty; none means the first unused of runs/MODEL, runs/MODEL-2, …"""
    json: bool = False
    """Print one JSON document on stdout and nothing else."""


@dataclass(frozen=True)
class Resume:
    """Resume an interrupted run as if it had never stopped; only --max-steps may change."""

    resume: Path
    """The run's folder."""
    max_steps: int | None = None
    """New total number of steps; none keeps the run's own."""
    json: bool = False
    """Print one JSON document on stdout and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore train`."""
    if value_of("--resume", argv) is not None:
        command, others = parse_known(Resume, "train", argv)
        if others:
            raise ConfigError(
                "only --max-steps and --json beside --resume: a run goes on as it began", " ".join(others),
                f"flashmore train --resume {shlex.quote(str(command.resume))} [--max-steps N] [--json]",
            )  # fmt: skip
        return _resume(command)
    if value_of("--out", argv) == "":
        raise ConfigError("a folder for --out", "an empty name", "for example --out runs/names")
    train = parse(Train, "train", argv, Train(defaults(argv)))
    refuse_ineffective(train.config, argv)
    return _train(train)


def _train(command: Train) -> int:
    from flashmore.training.loop import train
    from flashmore.training.progress import ProgressLine

    with ProgressLine() as line:
        result = train(command.config, command.out, line)
    return _report(result, command.json)


def _resume(command: Resume) -> int:
    from flashmore.training.loop import resume
    from flashmore.training.progress import ProgressLine

    with ProgressLine() as line:
        result = resume(command.resume, command.max_steps, line)
    return _report(result, command.json)


def _report(result: "TrainResult", as_json: bool) -> int:
    if as_json:
        write_json(result.to_json())
        return 0
    rows = table("", "")
    rows.show_header = False
    units = {"train_seconds": " s", "step_ms": " ms", "val_loss": " nats", "test_loss": " nats"}
    for name, value in result.to_json().items():
        if value is not None and name != "run":
            shown = f"{value:,.4f}" if isinstance(value, float) else str(value)
            rows.add_row(name.replace("_", " "), shown + units.get(name, ""))
    console = stdout()
    console.print(f"run {result.run}")
    console.print(rows)
    console.print(f"more names: flashmore generate {shlex.quote(result.run)}")
    return 0
