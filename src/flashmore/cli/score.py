"""`flashmore score`: log-probabilities of names under a run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import parse
from flashmore.cli.show import name_cells, stdout, table
from flashmore.errors import ConfigError
from flashmore.terminal import write_json


@dataclass(frozen=True)
class Score:
    """Print names' log-probabilities under a run's best weights, total and per character, with EOS."""

    run: Positional[Path]
    """The run's folder."""
    names: Positional[tuple[str, ...]]
    """The names to score."""
    json: bool = False
    """Print one JSON document on stdout and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore score`."""
    command = parse(Score, "score", argv)
    if not command.names:
        raise ConfigError("names to score", "none", f"flashmore score {command.run} NAME …")

    from flashmore.generation.sample import score
    from flashmore.runs import Run

    scored = score(Run.open(command.run), command.names)
    if command.json:
        write_json([asdict(name) for name in scored])
        return 0
    numbers = ("log-probability", "a character")
    rows = table("name", "novelty", *numbers, numbers=numbers)
    for name in scored:
        logs = (f"{name.log_prob:.2f}", f"{name.log_prob_per_char:.3f}")
        rows.add_row(*name_cells(name.text, name.novelty), *logs)
    stdout().print(rows)
    return 0
