"""Common to all `flashmore bench` commands: the progress bar and the output options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from flashmore.cli.parse import require_writable
from flashmore.errors import ConfigError, Interrupted
from flashmore.terminal import Terminal, say, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
FORMS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Output options of a benchmark."""

    out: Path | None = None
    """Write the record to this file."""
    picture: Path | None = None
    """Save a plot of the record to this file: .png, .svg or .pdf."""
    json: bool = False
    """Print the record on stdout and nothing else."""

    def __post_init__(self) -> None:
        if self.picture is not None and self.picture.suffix.lower() not in FORMS:
            raise ConfigError("a --picture that can be drawn", str(self.picture), ", ".join(FORMS))
        require_writable("--out", self.out)
        require_writable("--picture", self.picture)


def give(
    record: Record,
    outputs: Outputs,
    show: Callable[[Record], None],
    draw: Callable[[Record], "Figure"],
) -> int:
    """Print, write and plot a record according to the options.

    Args:
        record: the record.
        outputs: the options.
        show: prints it in human-readable form.
        draw: draws its plot.

    Returns:
        The exit code, which is that of an interruption if the record is not complete.
    """
    from flashmore.benchmark.plots.figure import save_picture
    from flashmore.measuring.result import write_record

    if outputs.json:
        write_json(record)
    else:
        show(record)
    if outputs.out is not None:
        write_record(record, outputs.out)
        say(f"the record: {outputs.out}")
    if outputs.picture is not None:
        save_picture(draw(record), outputs.picture)
        say(f"the picture: {outputs.picture}")
    if not record["complete"]:
        say("interrupted: what was measured so far is kept")
        return Interrupted.exit_code
    return 0


class BlockBar:
    """A context manager with a progress bar on stderr, updated after every round.

    Args:
        blocks: rounds at each context.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(compact=True),
            console=Terminal(stderr=True),
            transient=True,
        )
        self.task = self.progress.add_task("", total=blocks, start=False)

    def say(self, what: str) -> None:
        """Show the current activity."""
        self.progress.reset(self.task, description=what)
        if not self.progress.console.is_terminal:
            say(what)

    def after_block(self, done: int) -> None:
        """Update the bar."""
        self.progress.update(self.task, completed=done)

    def __enter__(self) -> "BlockBar":
        if self.progress.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress.console.is_terminal:  # elsewhere it was not started, and stopping prints a line
            self.progress.stop()
