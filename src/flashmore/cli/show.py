"""Results on stdout: one JSON document, or tables for people."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

UNFOLDED = 100_000
"""Columns of a line that nothing folds: a name has at most 1,000 characters."""
NOVELTY_STYLE = {"new": "bold cyan", "train": "dim", "validation": "dim", "test": "dim"}


def show_json(document: Any) -> None:
    """Print one JSON document and nothing else; characters as they are where stdout has them all."""
    escaped = not (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=escaped) + "\n")


def stdout() -> Console:
    """Where results go, whole: a table's cells are folded on a terminal, and on one line elsewhere.

    Names and paths may look like markup or like :emoji: codes, so none is read.
    """
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = UNFOLDED
    return console


def say(message: str) -> None:
    """A remark on stderr, apart from the results."""
    sys.stderr.write(message + "\n")


def table(*headers: str, title: str | None = None, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table in the house's style; columns named in `numbers` are right-aligned."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for header in headers:
        made.add_column(header, justify="right" if header in numbers else "left", overflow="fold")
    return made
