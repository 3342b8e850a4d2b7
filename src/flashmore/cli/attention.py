"""`flashmore attention`: attention maps of names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import parse, require_writable
from flashmore.cli.show import stdout, table, tell_picture
from flashmore.errors import ConfigError
from flashmore.terminal import say, write_json

MOST_NAMES = 8


@dataclass(frozen=True)
class Attention:
    """Show how much the attention heads of a run's Transformer attend to each character.

    The weights are computed by hand, and their output is compared with a fused kernel's.
    """

    run: Positional[Path]
    """Folder or pack of the run."""
    names: Positional[tuple[str, ...]]
    """Names, or texts for a run on one long text."""
    picture: Path | None = None
    """PNG file to write: a row per layer, a column per head."""
    positions: str | None = None
    """FIRST:LAST, to keep only these positions; the first is 0, and LAST is excluded."""
    json: bool = False
    """Print the weights to stdout as JSON, and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore attention`."""
    command = parse(Attention, "attention", argv)
    if not 1 <= len(command.names) <= MOST_NAMES:
        raise ConfigError(f"1 to {MOST_NAMES} names", str(len(command.names)), "for example: emma olivia")
    require_writable("--picture", command.picture, endings=(".png",))
    kept = None if command.positions is None else _positions(command.positions)

    from flashmore.runs import Run
    from flashmore.share.maps import BACKEND, START, attention_maps, draw_maps, label

    run = Run.open(command.run)
    maps = [attention_maps(run, name, kept) for name in command.names]
    if command.json:
        write_json([vars(each) | {"weights": each.weights.tolist()} for each in maps])
    else:
        rows = table("name", "layer", "head", "top keys of the last position", f"difference from {BACKEND}")
        for name, each in zip(command.names, maps, strict=True):
            for layer, heads in enumerate(each.weights[:, :, -1], start=1):
                for head, weights in enumerate(heads, start=1):
                    first = layer == head == 1
                    shares = sorted(enumerate(weights.tolist()), key=lambda item: -item[1])[:3]
                    read = ", ".join(
                        f"{label(each.characters[place])} ({each.first + place}) {share:.0%}"
                        for place, share in shares
                    )
                    difference = f"{each.difference:.1e}" if first else ""
                    rows.add_row(name if first else "", str(layer), str(head), read, difference)
        stdout(folded=False).print(rows)
        start = f"{START} is the start of a name; " if run.text is None else ""
        say(f"{start}positions are in parentheses")
        say(f"difference: the largest one between the outputs of these weights and of the kernel {BACKEND}")
    if command.picture is not None:
        tell_picture(command.picture, draw_maps(maps, command.picture))
    return 0


def _positions(text: str) -> slice:
    first, colon, last = text.partition(":")
    try:
        bounds = [int(part) if part else None for part in (first, last)]
    except ValueError:
        bounds = [-1]
    if not colon or any(bound is not None and bound < 0 for bound in bounds):
        raise ConfigError("positions as FIRST:LAST", f"'{text}'", "whole numbers from 0, for example 0:32")
    return slice(*bounds)
