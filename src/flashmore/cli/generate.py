"""`flashmore generate`: generate names or text from a run."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from flashmore.cli.parse import options_in, parse
from flashmore.cli.show import name_cells, stdout, table
from flashmore.errors import ConfigError, FlashmoreError, option_of
from flashmore.generation.options import NAMES, GenerateOptions
from flashmore.terminal import say, write, write_as_made, write_json

if TYPE_CHECKING:
    from flashmore.runs import Run

LENGTH = 500
BETWEEN = "\n---------------\n"
"""Between two texts, as in nanoGPT's sample.py."""
NO_ITEMS = "this run has no items here, so new names cannot be told from known ones"
FOR_TEXT = {"count", "prefix", "temperature", "top_k", "top_p", "seed"}
"""The options that apply to a run on one long text."""


@dataclass(frozen=True)
class Generate:
    """Generate names with a run's best weights, each labelled `train`, `validation`, `test` or `new`.

    Names are sampled from the model; those that do not match the options are rejected.

    For a run on one long text (--mode text), --prefix is continued by --length characters, which are printed
    as they are sampled.
    """

    run: Positional[Path]
    """Folder or pack of the run."""
    sampling: GenerateOptions
    length: int | None = None
    """For a run on one long text: number of characters to generate. If omitted, 500."""
    stride: int | None = None
    """For a run on one long text: number of characters by which the window moves once the context is full. If
    omitted, half the context of a transformer, and 1 for other models. With 1, each depends on exactly the
    last --block-size characters."""
    json: bool = False
    """Print the result to stdout as JSON, and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore generate`."""
    command = parse(Generate, "generate", argv)

    from flashmore.generation.sample import generate
    from flashmore.parallel import connected
    from flashmore.runs import Run

    run = Run.open(command.run)
    if run.text is not None:
        return _continue_text(run, command, options_in(argv))
    for option, value in (("--length", command.length), ("--stride", command.stride)):
        if value is not None:
            found = f"{command.run}, a run on items"
            valid = "--count to set the number of items"
            raise ConfigError(f"a run on one long text with {option}", found, valid)
    if "--max-distance" in options_in(argv) and command.sampling.like is None:
        raise ConfigError("--like NAME with --max-distance", "no --like", "use both, or neither")
    with connected("cpu") as ranks:
        made = generate(run, command.sampling, ranks=ranks)
    if command.json:
        write_json(asdict(made))
    elif made.names:
        headers = ("name", "novelty", "log-probability")
        near = ("nearest", "distance") if command.sampling.nearest else ()
        rows = table(*headers, *near, numbers=("log-probability", "distance"))
        for name in made.names:
            cells = (str(getattr(name, field)) for field in near)
            rows.add_row(*name_cells(name.text, name.novelty), f"{name.log_prob:.2f}", *cells)
        stdout(folded=False).print(rows)
    share = len(made.names) / made.draws
    say(str(made.tally or NO_ITEMS), f"{len(made.names):,} of {made.draws:,} draws accepted ({share:.2%})")
    if command.sampling.seed is None and made.names:
        say(f"to generate the same names again: --seed {made.seed}")
    if not made.complete:
        found = f"{len(made.names)} after {made.draws:,} draws"
        valid = "fewer constraints, or a larger --max-draws"
        if made.names:
            valid = f"a smaller --count, --repeats, {valid}"
        raise FlashmoreError(f"{command.sampling.count or NAMES} names", found, valid)
    return 0


def _continue_text(run: "Run", command: Generate, given: set[str]) -> int:
    from flashmore.generation.text import continue_text, stream_text

    for field in fields(GenerateOptions):
        option = option_of(field.name)
        if option in given and field.name not in FOR_TEXT:
            found = f"{command.run}, a run on one long text"
            valid = "--length, --stride, --count, --prefix, --temperature, --top-k, --top-p, --seed"
            raise ConfigError(f"a run on items with {option}", found, valid)
    length = LENGTH if command.length is None else command.length
    if command.json:
        write_json(asdict(continue_text(run, command.sampling, length, stride=command.stride)))
        return 0
    made = stream_text(run, command.sampling, length, stride=command.stride)
    others: list[tuple[str, ...]] = []

    def first() -> Iterator[str]:
        yield made.prefix
        for character, *rest in made.characters:
            yield character
            others.append(tuple(rest))

    try:
        write_as_made(first())
        for text in zip(*others, strict=True):
            write(f"{BETWEEN}{made.prefix}{''.join(text)}")
    finally:  # also after Ctrl-C
        write("\n")
        if command.sampling.seed is None:
            same = "text" if command.sampling.count in (None, 1) else "texts"
            say(f"to generate the same {same} again: --seed {made.seed}")
    return 0
