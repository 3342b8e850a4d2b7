"""`flashmore attention`: attention maps of names."""

from pathlib import Path

from tyro.conf import Positional

from flashmore.cli.parse import command, require_writable
from flashmore.cli.show import draw_picture, stdout, table
from flashmore.errors import ConfigError
from flashmore.terminal import say, write_json

MOST_NAMES = 8


@command("attention")
def main(
    run: Positional[Path],
    names: Positional[tuple[str, ...]],
    *,
    picture: Path | None = None,
    positions: str | None = None,
    json: bool = False,
) -> int:
    """Show how much the attention heads of a run's Transformer attend to each character.

    The weights are computed by hand, and their output is compared with a fused kernel's.

    Args:
        run: Folder or pack of the run.
        names: Names, or texts for a run on one long text.
        picture: PNG file to write: a row per layer, a column per head.
        positions: FIRST:LAST, to keep only these positions; the first is 0, and LAST is excluded.
        json: Print the weights to stdout as JSON, and nothing else.
    """
    if not 1 <= len(names) <= MOST_NAMES:
        raise ConfigError(f"1 to {MOST_NAMES} names", str(len(names)), "for example: emma olivia")
    require_writable("--picture", picture, endings=(".png",))
    kept = None if positions is None else _positions(positions)

    from flashmore.runs import Run
    from flashmore.share.maps import BACKEND, START, attention_maps, figure_of, label

    opened = Run.open(run)
    maps = [attention_maps(opened, name, kept) for name in names]
    if json:
        write_json([vars(each) | {"weights": each.weights.tolist()} for each in maps])
    else:
        rows = table("name", "layer", "head", "top keys of the last position", f"difference from {BACKEND}")
        for name, each in zip(names, maps, strict=True):
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
        start = f"{START} is the start of a name; " if opened.text is None else ""
        say(f"{start}positions are in parentheses")
        say(f"difference: the largest one between the outputs of these weights and of the kernel {BACKEND}")
    if picture is not None:
        draw_picture(picture, lambda: figure_of(maps))
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
