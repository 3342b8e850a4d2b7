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
    """Print the log-probability of names under a run's best weights, total and per character, with EOS."""

    run: Positional[Path]
    """Folder or pack of the run."""
    names: Positional[tuple[str, ...]] = ()
    """Names to score."""
    file: Path | None = None
    """Score the names in a file instead: a list, a table, a folder or `-` for stdin, as for `train`."""
    column: str | None = None
    """With --file: column with the names, in a CSV, TSV, JSON Lines or Parquet file."""
    encoding: str = "utf-8"
    """With --file: encoding of the file."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


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
        raise ConfigError("--file with --column or --encoding", "names", "only the names, or --file")

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
