"""`flashmore compare`: compare runs or models."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.measure import Measurement
from rich.text import Text
from tyro.conf import Positional

from flashmore.cli.parse import parse, require_writable
from flashmore.cli.show import STYLE, UNFOLDED, figures, stdout, table, tell_picture
from flashmore.config import TrainConfig
from flashmore.errors import ConfigError
from flashmore.generation.options import GenerateOptions
from flashmore.specs import Model
from flashmore.terminal import Cells, Terminal, say, write_json

if TYPE_CHECKING:
    from flashmore.comparison import Row
    from flashmore.generation.sample import Name
    from flashmore.runs import Run


@dataclass(frozen=True)
class Compare:
    """Compare runs by loss, parameters, training time and generated names."""

    runs: Positional[tuple[Path, ...]] = ()
    """Folders or packs of finished runs."""
    models: tuple[Model, ...] = ()
    """Models to train first with their default options, alone or in addition to the given runs."""
    file: Path | None = None
    """With --models: text file to train on. If omitted, the built-in names."""
    column: str | None = None
    """With --file: column with the items, in a CSV, TSV, JSON Lines or Parquet file."""
    max_steps: int | None = None
    """With --models: number of optimizer steps of each. If omitted, the model's default."""
    out: Path = Path("runs")
    """With --models: folder for their runs."""
    count: int = 10
    """Number of names to generate from each."""
    seed: int = 3407
    """Random seed for the names."""
    picture: Path | None = None
    """Save a plot of the comparison as a PNG file."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore compare`."""
    command = parse(Compare, "compare", argv)
    if not command.runs and not command.models:
        raise ConfigError("runs to compare", "none", "RUN RUN …, or --models bigram transformer")
    if not command.models and (command.file, command.max_steps, command.out) != (None, None, Compare.out):
        raise ConfigError(
            "--models with --file, --max-steps or --out",
            "no --models",
            "only the runs, or --models bigram transformer as well",
        )
    if command.column is not None and command.file is None:
        raise ConfigError("--file with --column", "no --file", "--file FILE, or omit --column")
    options = GenerateOptions(count=command.count, seed=command.seed)
    require_writable("--picture", command.picture, endings=(".png",))
    if command.models:
        require_writable("--out", command.out, folder=True)

    from flashmore.comparison import compare, draw, same_test_items
    from flashmore.runs import Run

    runs = [Run.open(path) for path in command.runs]
    rows = compare(runs, options)  # before any training, because it refuses unfinished runs
    given: dict[str, Any] = {"file": command.file, "column": command.column, "max_steps": command.max_steps}
    configs = [TrainConfig(model=model, **given) for model in command.models]
    trained = [train_into(command.out, config) for config in configs]
    rows += compare(trained, options)
    if not all(run.split.train for run in runs):
        say("a run without items here may have other test items: the test losses may not be comparable")
    elif not same_test_items(runs + trained):
        say("these runs have different test items: their test losses are not comparable")
    for row in rows:
        if row.improving:
            last = f"{row.result.run} has its lowest validation loss at its last step, {row.result.steps:,}"
            say(f"{last}: its loss may improve with a larger --max-steps")
    if command.json:
        write_json([row.to_json() for row in rows])
    else:
        show(rows)
    if command.picture is not None:  # last, so that a disk which refuses it takes nothing else along
        tell_picture(command.picture, draw(rows, command.picture))
    return 0


def train_into(out: Path, config: TrainConfig) -> "Run":
    """Train a model in a new folder below `out`, and show its progress."""
    from flashmore.runs import Run
    from flashmore.training.folders import unused_folder
    from flashmore.training.loop import train
    from flashmore.training.progress import ProgressLine

    with ProgressLine() as line:
        result = train(config, unused_folder(out / config.model), line)
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
