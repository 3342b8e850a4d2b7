"""`flashmore log`: the metrics of a run, to an experiment tracker."""

from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import command
from flashmore.errors import ConfigError
from flashmore.terminal import say


@command("log")
def main(run: Positional[Path], *, to: tuple[str, ...]) -> int:
    """Send the metrics of a run to experiment trackers, as `flashmore train --log-to` does.

    Args:
        run: Folder of the run.
        to: Trackers: any of tensorboard, wandb, mlflow and trackio.
    """
    from flashmore.runs import Run
    from flashmore.training.trackers import Trackers, require_installed

    if not to:
        raise ConfigError("at least one tracker for --to", "none", "for example --to tensorboard")
    require_installed(to, "--to")
    opened = Run.open(run)
    if opened.unpacked is not None:
        raise ConfigError("the folder of a run", f"{run}, a pack, which has no metrics", "a folder")
    lines = opened.read_metrics()
    if not lines:
        raise ConfigError("a run with metrics", f"{run}, which has none", "a run trained here")
    with Trackers(to, opened.path, opened.config, 0) as trackers:
        for line in lines:
            trackers.write(line)
    if trackers.names:
        say(f"{len(lines):,} steps of {opened.path} sent to {', '.join(trackers.names)}")
    return int(set(trackers.names) != set(to))
