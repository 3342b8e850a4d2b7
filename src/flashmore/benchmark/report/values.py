"""What a report shows, as plain values; the templates say how it looks as HTML and as Markdown."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first column names the row."""

    caption: str
    rows: Sequence[Mapping[str, str]]
    """Cells by column; every row has the same columns."""
    words: Collection[str]
    """The columns that hold words; all others hold numbers and are right-aligned."""
    differing: Collection[str] = ()
    """Names of the rows to mark, because the values in them differ."""

    @property
    def columns(self) -> list[str]:
        """Headings; none in a table without rows."""
        return list(self.rows[0]) if self.rows else []


@dataclass(frozen=True)
class Plot:
    """A plot in a form that both formats use."""

    name: str
    """Letters, different from that of every other plot of the record."""
    title: str
    description: str
    svg: bytes


@dataclass(frozen=True)
class Setting:
    """What was measured at one setting."""

    title: str
    table: Table
    conclusion: str = ""
    remarks: Sequence[str] = ()
    comparable: Mapping[str, str] = field(default_factory=dict)
    """What of it can stand beside other records of the same setting, by name."""


@dataclass(frozen=True)
class Summary:
    """What a report shows of a record, whatever its kind."""

    findings: Sequence[str]
    plots: Sequence[Plot]
    settings: Sequence[Setting]
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """One record of a report."""

    number: int
    name: str
    """Of its file."""
    question: str
    """What was measured."""
    title: str
    column: str
    """The heading of its column where records stand side by side."""
    glance: Sequence[str]
    """What to know of it first."""
    command: str
    record: Record
    summary: Summary


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    sections: Sequence[Section]
    machines: Table
    side_by_side: Sequence[Table | str]
    """A sentence stands where records of one kind share no setting."""
