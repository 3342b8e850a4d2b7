"""`flashmore log`: the metrics of a run, to an experiment tracker."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import parse
from flashmore.terminal import say


@dataclass(frozen=True)
class Log:
    """Send the metrics of a run to experiment trackers, as `flashmore train --log-to` does."""

    run: Positional[Path]
    """Folder of the run."""
    to: tuple[str, ...]
    """Trackers: any of tensorboard, wandb, mlflow and trackio."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore log`."""
    command = parse(Log, "log", argv)

    from flashmore.runs import Run
    from flashmore.training.trackers import Trackers, require_installed

    require_installed(command.to)
    run = Run.open(command.run)
    lines = run.read_metrics()
    with Trackers(command.to, run.path, run.config, 0) as trackers:
        for line in lines:
            trackers.write(line)
    say(f"{len(lines):,} steps of {run.path} sent to {', '.join(trackers.names)}")
    return 0 if trackers.names else 1
