"""`flashmore score`: log-probabilities of names under a run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import parse
from flashmore.cli.show import name_cells, stdout, table
from flashmore.data.items import read_words
from flashmore.errors import ConfigError
from flashmore.terminal import say, write_json


@dataclass(frozen=True)
class Score:
    """Print names' log-probabilities under a run's best weights, total and per character, with EOS."""

    run: Positional[Path]
    """The run's folder."""
    names: Positional[tuple[str, ...]] = ()
    """The names to score."""
    file: Path | None = None
    """Score the names of a file instead: a list, a table, `-` for stdin, or a folder, as for `train`."""
    column: str | None = None
    """With --file: column of a CSV, TSV, JSON lines or Parquet file that holds the names."""
    encoding: str = "utf-8"
    """With --file: its text encoding."""
    json: bool = False
    """Print one JSON document on stdout and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore score`."""
    command = parse(Score, "score", argv)
    if (command.file is None) != bool(command.names):
        found = "both names and --file" if command.names else "none"
        raise ConfigError("names to score", found, f"flashmore score {command.run} NAME …, or --file FILE")
    names = command.names
    if command.file is not None:
        words = read_words(command.file, command.encoding, command.column)
        say(*words.notes)
        names = words.items
    elif command.column or command.encoding != Score.encoding:
        raise ConfigError("--file beside --column and --encoding", "names", "the names alone, or --file")

    from flashmore.generation.sample import score
    from flashmore.runs import Run

    scored = score(Run.open(command.run), names)
    if command.json:
        write_json([asdict(name) for name in scored])
        return 0
    numbers = ("log-probability", "a character")
    rows = table("name", "novelty", *numbers, numbers=numbers)
    for name in scored:
        logs = (f"{name.log_prob:.2f}", f"{name.log_prob_per_char:.3f}")
        rows.add_row(*name_cells(name.text, name.novelty), *logs)
    stdout(folded=False).print(rows)
    return 0
