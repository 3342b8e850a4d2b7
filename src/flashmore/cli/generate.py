"""`flashmore generate`: more names from a run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.text import Text
from tyro.conf import Positional

from flashmore.cli.parse import parse
from flashmore.cli.show import NOVELTY_STYLE, say, show_json, stdout, table
from flashmore.generation.options import GenerateOptions


@dataclass(frozen=True)
class Generate:
    """Draw names from a run's best weights, each labelled `train`, `validation`, `test` or `new`."""

    run: Positional[Path]
    """The run's folder, as `flashmore train` leaves it."""
    sampling: GenerateOptions
    json: bool = False
    """Print one JSON document on stdout and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore generate`."""
    command = parse(Generate, "generate", argv)

    from flashmore.generation.sample import generate
    from flashmore.runs import Run

    made = generate(Run.open(command.run), command.sampling)
    if command.json:
        show_json([asdict(name) for name in made.names])
    else:
        rows = table("name", "novelty", "log-probability", numbers=("log-probability",))
        for name in made.names:
            style = NOVELTY_STYLE[name.novelty]
            rows.add_row(Text(name.text, style), Text(name.novelty, style), f"{name.log_prob:.2f}")
        stdout().print(rows)
    if command.sampling.seed is None:
        say(f"the same names again: --seed {made.seed}")
    if not made.complete:
        say(
            f"wanted: {command.sampling.count} names\n"
            f" found: {len(made.names)} after {made.draws:,} draws\n"
            " valid: a smaller --count, a higher --temperature, another --prefix, or --repeats"
        )
        return 1
    return 0
