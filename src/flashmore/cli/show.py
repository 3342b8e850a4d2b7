"""Results on stdout: one JSON document, or tables for people."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

NOVELTY_STYLE = {"new": "bold cyan", "train": "dim", "validation": "dim", "test": "dim"}


def show_json(document: Any) -> None:
    """Print one JSON document and nothing else; characters as they are, not escaped."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def stdout() -> Console:
    """Where results go; names may look like markup, so none is read."""
    return Console(highlight=False, markup=False, soft_wrap=True)


def say(message: str) -> None:
    """A remark on stderr, apart from the results."""
    sys.stderr.write(message + "\n")


def table(*headers: str, title: str | None = None, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table in the house's style; columns named in `numbers` are right-aligned."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for header in headers:
        made.add_column(header, justify="right" if header in numbers else "left")
    return made
