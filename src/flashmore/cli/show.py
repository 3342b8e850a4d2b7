"""Human-readable results on stdout: tables and lines, printed by `flashmore.terminal`."""

from rich.text import Text

from flashmore.terminal import Cells, Terminal, one_line

UNFOLDED = 100_000
"""Width for lines that must not be folded: a name has at most 1,000 characters."""
NOVELTY_STYLE = {"new": "bold cyan", "train": "dim", "validation": "dim", "test": "dim"}


def stdout() -> Terminal:
    """The console for results: table cells are folded on a terminal, and on one line elsewhere."""
    console = Terminal(soft_wrap=True)
    if not console.is_terminal:
        console.width = UNFOLDED
    return console


def table(*headers: str, title: str | None = None, numbers: tuple[str, ...] = ()) -> Cells:
    """An empty table in the common style; columns named in `numbers` are right-aligned."""
    title = None if title is None else one_line(title)
    made = Cells(title=title, title_justify="left", title_style="bold", header_style="bold")
    for header in headers:
        made.add_column(header, justify="right" if header in numbers else "left", overflow="fold")
    return made


def name_cells(name: str, novelty: str) -> tuple[Text, Text]:
    """The cells of a name and of the part of the data that it is in."""
    style = NOVELTY_STYLE[novelty]
    return Text(name, style), Text(novelty, style)
