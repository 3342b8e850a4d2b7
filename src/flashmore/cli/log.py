"""`flashmore log`: the metrics of a run, to an experiment tracker."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import parse
from flashmore.errors import ConfigError
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

    if not command.to:
        raise ConfigError("at least one tracker for --to", "none", "for example --to tensorboard")
    require_installed(command.to)
    run = Run.open(command.run)
    if run.unpacked is not None:
        raise ConfigError("the folder of a run", f"{command.run}, a pack, which has no metrics", "a folder")
    lines = run.read_metrics()
    if not lines:
        raise ConfigError("a run with metrics", f"{command.run}, which has none", "a run trained here")
    with Trackers(command.to, run.path, run.config, 0) as trackers:
        for line in lines:
            trackers.write(line)
    if trackers.names:
        say(f"{len(lines):,} steps of {run.path} sent to {', '.join(trackers.names)}")
    return int(set(trackers.names) != set(command.to))
