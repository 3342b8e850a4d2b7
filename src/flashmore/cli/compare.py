"""`flashmore compare`: compare runs or models."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.measure import Measurement
from rich.text import Text
from tyro.conf import Positional

from flashmore.cli.parse import command, require_writable
from flashmore.cli.show import STYLE, UNFOLDED, draw_picture, figures, stdout, table
from flashmore.config import TrainConfig
from flashmore.errors import ConfigError
from flashmore.generation.options import GenerateOptions
from flashmore.specs import Model
from flashmore.terminal import Cells, Terminal, say, write_json

if TYPE_CHECKING:
    from flashmore.comparison import Row
    from flashmore.generation.sample import Name
    from flashmore.runs import Run

RUNS = Path("runs")
"""Where runs are by default."""


@command("compare")
def main(
    runs: Positional[tuple[Path, ...]] = (),
    *,
    models: tuple[Model, ...] = (),
    file: Path | None = None,
    column: str | None = None,
    max_steps: int | None = None,
    out: Path = RUNS,
    count: int = 10,
    seed: int = 3407,
    picture: Path | None = None,
    json: bool = False,
) -> int:
    """Compare runs by loss, parameters, training time and generated names.

    Args:
        runs: Folders or packs of finished runs.
        models: Models to train first with their default options, alone or in addition to the given runs.
        file: With --models: text file to train on. If omitted, the built-in names.
        column: With --file: column with the items, in a CSV, TSV, JSON, JSON Lines or Parquet file.
        max_steps: With --models: number of optimizer steps of each. If omitted, the model's default.
        out: With --models: folder for their runs.
        count: Number of names to generate from each.
        seed: Random seed for the names.
        picture: Save a plot of the comparison as a PNG file.
        json: Print the result to stdout as JSON, and nothing else.
    """
    if not runs and not models:
        raise ConfigError("runs to compare", "none", "RUN RUN …, or --models bigram transformer")
    if not models and (file, max_steps, out) != (None, None, RUNS):
        raise ConfigError(
            "--models with --file, --max-steps or --out",
            "no --models",
            "only the runs, or --models bigram transformer as well",
        )
    if column is not None and file is None:
        raise ConfigError("--file with --column", "no --file", "--file FILE, or omit --column")
    options = GenerateOptions(count=count, seed=seed)
    require_writable("--picture", picture, endings=(".png",))
    if models:
        require_writable("--out", out, folder=True)

    from flashmore.comparison import compare, figure_of
    from flashmore.runs import Run

    opened = [Run.open(path) for path in runs]
    rows = compare(opened, options)  # before any training, because it refuses unfinished runs
    given: dict[str, Any] = {"file": file, "column": column, "max_steps": max_steps}
    configs = [TrainConfig(model=model, **given) for model in models]
    trained = [train_into(out, config) for config in configs]
    rows += compare(trained, options)
    if not all(run.split.train for run in opened):
        say("a run without items here may have other test items: the test losses may not be comparable")
    elif len({frozenset(run.split.test) for run in opened + trained}) > 1:
        say("these runs have different test items: their test losses are not comparable")
    for row in rows:
        if row.improving:
            last = f"{row.result.run} has its lowest validation loss at its last step, {row.result.steps:,}"
            say(f"{last}: its loss may improve with a larger --max-steps")
    if json:
        write_json([row.to_json() for row in rows])
    else:
        show(rows)
    if picture is not None:  # last, so that a disk which refuses it takes nothing else along
        draw_picture(picture, lambda: figure_of(rows))
    return 0


def train_into(out: Path, config: TrainConfig) -> "Run":
    """Train a model in a new folder below `out`, and show its progress."""
    from flashmore.runs import Run
    from flashmore.training.folders import unused_folders
    from flashmore.training.loop import train
    from flashmore.training.progress import ProgressLine

    with ProgressLine() as line:
        result = train(config, next(unused_folders(out / config.model)), line)
    return Run.open(result.run)


def show(rows: "Sequence[Row]") -> None:
    """Print tables with a column for each run, as many as fit beside each other: numbers above, names below.

    A name of the data is followed by the part that it is in.
    """
    console, first = stdout(), 0
    while first < len(rows):
        last = len(rows)
        while last > first + 1 and _width(console, _table(rows, first, last)) > console.width:
            last -= 1
        console.print(_table(rows, first, last))
        first = last
    console.print(*(f"run {number}: {row.result.run}" for number, row in enumerate(rows, start=1)))


def _width(console: Terminal, shown: Cells) -> int:
    """Columns that a table needs to fold no cell."""
    return Measurement.get(console, console.options.update(max_width=UNFOLDED), shown).maximum


def _table(rows: "Sequence[Row]", first: int, last: int) -> Cells:
    chosen = rows[first:last]
    shown = table("", *(row.result.model for row in chosen))
    shown.add_row("run", *map(str, range(first + 1, last + 1)))
    columns = [figures(row.result, row.best_step) for row in chosen]
    for title in columns[0]:
        shown.add_row(title, *(column[title] for column in columns))
    shown.add_section()
    names = [[_shown(name) for name in row.names] for row in chosen]
    for line, cells in enumerate(zip_longest(*names, fillvalue=Text())):
        shown.add_row("" if line else "names", *cells)
    return shown


def _shown(name: "Name") -> Text:
    known = "" if name.novelty in ("new", "unknown") else f" ({name.novelty})"
    return Text(f"{name.text}{known}", STYLE[name.novelty])
