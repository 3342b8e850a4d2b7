"""`flashmore generate`: more names from a run, or more text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text
from tyro.conf import Positional

from flashmore.cli.parse import parse
from flashmore.cli.show import NOVELTY_STYLE, say, show_json, stdout, table
from flashmore.errors import RecipeError
from flashmore.generation.options import GenerateOptions

if TYPE_CHECKING:
    from flashmore.runs import Run


@dataclass(frozen=True)
class Generate:
    """Draw names from a run's best weights, each labelled `train`, `validation`, `test` or `new`.

    A run on one long text (--mode text) gives --length characters of text after --prefix.
    """

    run: Positional[Path]
    """The run's folder, as `flashmore train` leaves it."""
    sampling: GenerateOptions
    length: int = 500
    """For a run on one long text: characters to generate, after --prefix."""
    json: bool = False
    """Print one JSON document on stdout and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore generate`."""
    command = parse(Generate, "generate", argv)

    from flashmore.generation.sample import generate
    from flashmore.runs import Run

    run = Run.open(command.run)
    if run.text is not None:
        return _continue_text(run, command)
    made = generate(run, command.sampling)
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


def _continue_text(run: "Run", command: Generate) -> int:
    from flashmore.generation.text import continue_text

    options = command.sampling
    for option, given in (
        ("--count", options.count != GenerateOptions.count),
        ("--new-only", options.new_only),
        ("--repeats", options.repeats),
    ):
        if given:
            found = f"{command.run}, a run on one long text"
            raise RecipeError(
                f"a run on items, for {option}", found, "--length, --prefix and what decides a draw"
            )
    made = continue_text(run, options, command.length)
    if command.json:
        show_json(asdict(made))
        return 0
    stdout().print(made.prefix + made.text)
    if options.seed is None:
        say(f"the same text again: --seed {made.seed}")
    return 0
