"""`flashmore look`: what a list holds, before training on it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.columns import Columns
from tyro.conf import Positional

from flashmore.cli.parse import command, require_writable
from flashmore.cli.show import draw_picture, stdout, table
from flashmore.data.items import read_words, split_words
from flashmore.data.overview import Overview, overview, shortened
from flashmore.data.vocabulary import shown
from flashmore.terminal import say, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHARACTERS = 12
"""Most frequent and rarest characters in the table."""
BARS = 40
"""Characters in the picture."""


@command("look")
def main(
    file: Positional[Path | None] = None,
    *,
    column: str | None = None,
    weight: str | None = None,
    encoding: str = "utf-8",
    split: str = "80/10/10",
    split_seed: int = 3407,
    picture: Path | None = None,
    json: bool = False,
) -> int:
    """Show what a list contains, without training: counts, lengths, characters and likely mistakes.

    Args:
        file: A list, a table, a folder or `-` for stdin, as for `train`. If omitted, the built-in names.
        column: Column with the items, in a CSV, TSV, JSON, JSON Lines or Parquet file.
        weight: With --column: column with the weights of the items.
        encoding: Encoding of the file.
        split: Percentages for train/validation/test, or `makemore`.
        split_seed: Seed of the split.
        picture: Save a plot of lengths and characters as a PNG file.
        json: Print the result to stdout as JSON, and nothing else.
    """
    require_writable("--picture", picture, endings=(".png",))
    words = read_words(file, encoding, column, weight)
    found = overview(words, split_words(words, split, split_seed))
    if json:
        write_json(asdict(found))
    else:
        _show(found)
    if picture is not None:
        draw_picture(picture, lambda: _figure(found))
    return 0


def _show(found: Overview) -> None:
    rows = table("", "")
    rows.add_row("items", f"{found.items:,} different in {found.lines:,} line{'s' * (found.lines != 1)}")
    rows.add_row("parts", ", ".join(f"{count:,} {name}" for name, count in found.parts.items()))
    shares = ", ".join(f"{share:.0%} up to {found.length(share)}" for share in (0.95, 0.99))
    ends = f"{min(found.lengths)} to {max(found.lengths)}"
    rows.add_row("lengths", f"{ends}; median {found.length(0.5)}, {shares}")
    frequent, rare = [*found.characters.items()][:CHARACTERS], [*found.characters.items()][CHARACTERS:]
    if (weights := found.weights) is not None:
        rows.add_row("weights", f"{weights.least:,g} to {weights.most:,g}, total {weights.total:,g}")
        rows.add_row("", f"effective sample size {weights.effective:,.0f}")
    rows.add_row("characters", f"{len(found.characters):,}")
    rows.add_row("frequent", _counts(frequent))
    if rare:
        rows.add_row("rare", _counts(rare[: -CHARACTERS - 1 : -1]))
    rows.add_row("examples", shortened(found.examples))
    for finding in found.findings:
        rows.add_section()
        rows.add_row(f"{finding.count:,}", f"{finding.what}: {shortened(finding.examples)}")
    stdout().print(f"{found.source}", rows)
    say(*found.notes)


def _counts(characters: Sequence[tuple[str, int]]) -> Columns:
    return Columns([f"{shown(character)} {count:,}" for character, count in characters], padding=(0, 2))


def _figure(found: Overview) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure((8, 6), dpi=150, layout="constrained")
    above, below = figure.subplots(2)
    above.bar([*found.lengths], [*found.lengths.values()], color="#1b4f9c", width=0.9)
    above.set(xlabel="characters in an item", ylabel="items")
    most = [*found.characters.items()][:BARS]
    below.bar(range(len(most)), [count for _, count in most], color="#1b4f9c")
    below.set_xticks(range(len(most)), [shown(character) for character, _ in most], parse_math=False)
    for label in below.get_xticklabels():
        label.set_rotation(90 if len(label.get_text()) > 1 else 0)
    below.set(xlabel=f"the most frequent of {len(found.characters):,} characters", ylabel="occurrences")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
