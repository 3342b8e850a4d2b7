"""`flashmore score`: log-probabilities of names under a run."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import command
from flashmore.cli.show import name_cells, stdout, table
from flashmore.data.items import read_words
from flashmore.errors import ConfigError
from flashmore.terminal import say, write_json

EXAMPLES = 5
"""Most left-out names to list."""


@command("score")
def main(
    run: Positional[Path],
    names: Positional[tuple[str, ...]] = (),
    *,
    file: Path | None = None,
    column: str | None = None,
    encoding: str = "utf-8",
    json: bool = False,
) -> int:
    """Print the log-probability of names under a run's best weights, total and per character, including EOS.

    Args:
        run: Folder or pack of the run.
        names: Names to score.
        file: Score the names in a file instead: a list, a table, a folder or `-` for stdin, as for `train`.
            Names that the model cannot generate are left out; the first few are listed on stderr.
        column: With --file: column with the names, in a CSV, TSV, JSON, JSON Lines or Parquet file.
        encoding: With --file: encoding of the file.
        json: Print the result to stdout as JSON, and nothing else.
    """
    if (file is None) != bool(names):
        found = "both names and --file" if names else "none"
        raise ConfigError("names to score", found, f"flashmore score {run} NAME …, or --file FILE")
    if file is not None:
        words = read_words(file, encoding, column)
        say(*words.notes)
        names = words.items
    elif column or encoding != "utf-8":
        raise ConfigError("--file with --column or --encoding", "names", "only the names, or --file")

    from flashmore.generation.sample import score, why_unscorable
    from flashmore.runs import Run

    opened = Run.open(run)
    if file is not None:
        left_out = {name: why for name in names if (why := why_unscorable(opened, name))}
        if known := tuple(name for name in names if name not in left_out):
            names = known
            for why in islice(left_out.values(), EXAMPLES):
                say(f"left out: {why}")
            if len(left_out) > EXAMPLES:
                say(f"and {len(left_out) - EXAMPLES:,} more")
    scored = score(opened, names)
    if json:
        write_json([asdict(name) for name in scored])
        return 0
    numbers = ("log-probability", "per character")
    rows = table("name", "novelty", *numbers, numbers=numbers)
    for name in scored:
        logs = (f"{name.log_prob:.2f}", f"{name.log_prob_per_char:.3f}")
        rows.add_row(*name_cells(name.text, name.novelty), *logs)
    stdout(folded=False).print(rows)
    return 0
