"""Human-readable results on stdout: tables and lines, printed by `flashmore.terminal`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from flashmore.terminal import Cells, Terminal, duration, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flashmore.training.result import TrainResult

UNFOLDED = 100_000
"""Width for lines that must not be folded: a name has at most 1,000 characters."""
STYLE = {
    "new": "bold cyan", "train": "dim", "validation": "dim", "test": "dim", "unknown": "",
    "faster": "green", "slower": "red", "inconclusive": "yellow",
}  # fmt: skip
"""Styles of cells: the part of the data that a name is in, and verdicts."""


def stdout(*, folded: bool = True) -> Terminal:
    """The console for results.

    Args:
        folded: whether table cells are folded in a pipe; on a terminal they always are.
    """
    console = Terminal(soft_wrap=True)
    if not folded and not console.file.isatty():
        console.width = UNFOLDED
    return console


def table(*headers: str, numbers: tuple[str, ...] = ()) -> Cells:
    """An empty table in the common style; columns named in `numbers` are right-aligned."""
    made = Cells(header_style="bold", show_header=any(headers))
    for header in headers:
        made.add_column(header, justify="right" if header in numbers else "left", overflow="fold")
    return made


def name_cells(name: str, novelty: str) -> tuple[Text, Text]:
    """The cells of a name and of the part of the data that it is in."""
    return Text(name, STYLE[novelty]), Text(novelty, STYLE[novelty])


def draw_picture(picture: Path, draw: "Callable[[], Figure]") -> None:
    """Save a picture; report its path, and how many characters its font lacks."""
    from flashmore.plotting import save_picture

    boxes = save_picture(draw, picture)
    say(f"picture: {picture}")
    if boxes:
        say(f"{boxes} characters are shown as boxes in the picture: they are missing in its font")


def figures(result: "TrainResult", best_step: int | None) -> dict[str, str]:
    """A finished run's sizes, times and losses, by their titles."""
    losses = {"validation loss": result.val_loss, "test loss": result.test_loss}
    return {
        "attention": result.attention or "none",
        "parameters": f"{result.parameters:,}",
        "steps": f"{result.steps:,}",
        "best step": "–" if best_step is None else f"{best_step:,}",
        "training time": duration(result.train_seconds),
        "time per step": f"{result.step_ms:.2f} ms",
        **{name: "–" if loss is None else f"{loss:.4f} nats" for name, loss in losses.items()},
    }
