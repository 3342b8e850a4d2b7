"""The content of a report as plain values; the templates render it as HTML and Markdown."""

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
    """Text columns; all others are numeric and right-aligned."""
    differing: Collection[str] = ()
    """Names of the rows to mark because their values differ."""

    @property
    def columns(self) -> list[str]:
        """Headings; none in a table without rows."""
        return list(self.rows[0]) if self.rows else []


@dataclass(frozen=True)
class Plot:
    """A plot in a form that both formats use."""

    name: str
    """Letters, unique among the record's plots."""
    title: str
    description: str
    svg: bytes


@dataclass(frozen=True)
class Setting:
    """Measurements at one setting."""

    title: str
    table: Table
    conclusion: str = ""
    remarks: Sequence[str] = ()
    comparable: Mapping[str, str] = field(default_factory=dict)
    """Values comparable with other records of the same setting, by name."""


@dataclass(frozen=True)
class Summary:
    """What a report shows of a record of any kind."""

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
    """The heading of its column in side-by-side tables."""
    glance: Sequence[str]
    """Key findings."""
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
    """Tables, or a sentence if records of one kind share no setting."""
