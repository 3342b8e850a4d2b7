"""Compares several runs: losses, sizes, time and names, as rows and as a plot."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flashmore.generation.options import GenerateOptions
from flashmore.generation.sample import Name, generate
from flashmore.runs import Run
from flashmore.terminal import one_line
from flashmore.training.result import TrainResult, require_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_INCHES = 2.6
COLUMN_CHARACTERS = 22
NEW, KNOWN = "#1b4f9c", "#8a8f98"


class Row(NamedTuple):
    """One run: its result as printed by `flashmore train --json`, and generated names."""

    result: TrainResult
    names: tuple[Name, ...]
    best_step: int | None
    """The step with the lowest validation loss; None without a validation part."""

    @property
    def improving(self) -> bool:
        """Whether the last evaluation was the best, so that longer training may lower the loss."""
        return self.best_step == self.result.steps

    def to_json(self) -> dict[str, Any]:
        """The result's fields, `best_step`, and `names` as printed by `flashmore generate --json`."""
        names = [asdict(name) for name in self.names]
        return self.result.to_json() | {"best_step": self.best_step, "names": names}


def compare(runs: Sequence[Run], options: GenerateOptions) -> list[Row]:
    """Compare runs.

    Raises:
        RunError: a run has not finished, or is on one long text.
    """
    rows = []
    for run in runs:
        run.require_items("to compare with others")
        result = require_result(run)
        names, best_step = tuple(generate(run, options).names), run.load_state().best_step
        rows.append(Row(replace(result, run=str(run.path)), names, best_step))
    return rows


def figure_of(rows: Sequence[Row]) -> "Figure":
    """Draw the comparison: test losses as bars above, names in columns below."""
    from matplotlib.figure import Figure

    longest = max((len(row.names) for row in rows), default=0)
    above, below = 0.7 + 0.45 * len(rows), 0.27 * (longest + 3)
    size = (max(6.5, COLUMN_INCHES * len(rows)), above + below)
    figure = Figure(size, dpi=150, layout="constrained")
    grid = figure.add_gridspec(2, len(rows), height_ratios=(above, below))
    _draw_losses(figure.add_subplot(grid[0, :]), rows)
    for column, row in enumerate(rows):
        _draw_names(figure.add_subplot(grid[1, column]), row, longest)
    figure.supxlabel("blue: a new name · grey: a name of the data", fontsize=8, color=KNOWN)
    return figure


def _draw_losses(axes: "Axes", rows: Sequence[Row]) -> None:
    losses = [row.result.test_loss for row in rows]
    bars = axes.barh(range(len(rows)), [loss or 0.0 for loss in losses], color=NEW, height=0.6)
    labels = ["no test part" if loss is None else f"{loss:.3f}" for loss in losses]
    axes.bar_label(bars, labels, padding=4)
    models = [(row.result.model, _folder(row)) for row in rows]
    names = [f"{model} ({folder})" if folder else model for model, folder in models]
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max((loss for loss in losses if loss), default=1.0))
    axes.set_xlabel("test loss, nats per character (lower is better)")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_names(axes: "Axes", row: Row, longest: int) -> None:
    axes.set_axis_off()
    axes.set_ylim(longest + 1, -1.5)
    axes.set_title(row.result.model, loc="left", fontweight="bold", parse_math=False)
    facts = f"{row.result.parameters:,} parameters, {row.result.train_seconds:.0f} s"
    told = "\n".join(filter(None, (_folder(row), facts)))
    axes.text(0, -0.35, told, fontsize=8, color=KNOWN, va="bottom", parse_math=False)
    for line, name in enumerate(row.names):
        color, text = NEW if name.novelty == "new" else KNOWN, _shorten(name.text)
        # Names are not formulas, and text wider than its column must not move the others.
        axes.text(0, line + 0.5, text, fontsize=12, color=color, parse_math=False, clip_on=True)


def _folder(row: Row) -> str:
    """The name of the run's folder; empty if that is the model's."""
    folder = Path(row.result.run).resolve().name
    return "" if folder == row.result.model else _shorten(folder)


def _shorten(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= COLUMN_CHARACTERS else text[: COLUMN_CHARACTERS - 1] + "…"
