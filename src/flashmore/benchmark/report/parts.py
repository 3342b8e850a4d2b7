"""What a report is made of, before it is HTML or Markdown: plain text in headings, tables and pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Comparable: TypeAlias = dict[str, dict[str, str]]
"""What of a record can stand beside another: by what was measured, rows by their name."""
Tone = Literal["plain", "faster", "slower", "no difference", "differs"]


@dataclass(frozen=True)
class Cell:
    """Text that stands out; the text alone says all, the tone only repeats it."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Heading:
    """A heading; level 2 begins a section."""

    text: str
    level: Literal[2, 3] = 3


@dataclass(frozen=True)
class Paragraph:
    """A few sentences; `strong` ones are what to remember."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Points:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Notice:
    """What a reader must not overlook."""

    title: str
    text: str


@dataclass(frozen=True)
class Command:
    """A line for the shell."""

    line: str


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first column names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    numbers: tuple[str, ...] = ()
    """The columns that are right-aligned."""


@dataclass(frozen=True)
class Picture:
    """A plot, drawn when it is asked for."""

    name: str
    """Letters and hyphens, different from that of every other picture of the report."""
    title: str
    description: str
    draw: "Callable[[], Figure]"


Part: TypeAlias = Heading | Paragraph | Points | Notice | Command | Table | Picture


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    parts: tuple[Part, ...]
