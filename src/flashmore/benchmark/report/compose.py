"""Combines records into one report: machines side by side, then each record.

A report only formats: every number in it is from a record, except for units.
"""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from flashmore.benchmark.report.summaries import summarize
from flashmore.benchmark.report.values import Record, Summary, Table, digits, machine

Row: TypeAlias = tuple[str, Sequence[str]]
"""A row's name, and the text for each record."""
QUESTIONS = {
    "step": "training step",
    "ablation": "ablation of speed-ups",
    "attention": "attention alone",
    "choose": "choice of a backend",
}
"""By kind of record, in the order of the tables."""
ENVIRONMENT = {
    "device": "computes on",
    "device_name": "device",
    "capability": "compute capability",
    "cpu_name": "CPU",
    "cpu_count": "CPUs",
    "threads": "threads",
    "memory_bytes": "main memory",
    "os": "system",
    "python": "Python",
    "torch": "torch",
    "cuda": "CUDA of torch",
    "cudnn": "cuDNN",
    "commit": "flashmore's commit",
    "clock_resolution_s": "the clock's smallest step",
    "fuse_attention": "patterns that Inductor made SDPA",
}


@dataclass(frozen=True)
class Section:
    """One record of a report."""

    number: int
    name: str
    """Of its file."""
    record: Record
    summary: Summary

    @property
    def question(self) -> str:
        """What was measured."""
        return QUESTIONS[self.record["kind"]]

    @property
    def title(self) -> str:
        """Its heading."""
        return f"Record {self.number}: {self.question} on {machine(self.record['environment'])}"

    @property
    def column(self) -> str:
        """The heading of its column in side-by-side tables."""
        return f"{self.number}: {machine(self.record['environment'])}"

    @property
    def glance(self) -> list[str]:
        """Key findings."""
        codes = dict.fromkeys(warning["code"] for warning in self.record["warnings"])
        told = [f"Warnings, explained below: {', '.join(codes)}."] if codes else []
        return [*self.summary.findings, *told]

    @property
    def command(self) -> str:
        """The command that measured it."""
        return shlex.join(self.record["command"])


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    sections: Sequence[Section]
    machines: Table
    side_by_side: Sequence[Table | str]
    """Tables, or a sentence if records of one kind share no setting."""


def report_on(records: Sequence[tuple[str, Record]]) -> Report:
    """Arrange records into a report.

    Args:
        records: the name of each record's file, and the record as `read_record` gives it.
    """
    sections = [
        Section(number, name, record, summarize(record))
        for number, (name, record) in enumerate(printable([*map(list, records)]), start=1)
    ]
    machines = dict.fromkeys(machine(section.record["environment"]) for section in sections)
    title = f"flashmore: measured on {' and on '.join(machines)}"
    side_by_side = [table for kind in QUESTIONS for table in _side_by_side(kind, sections)]
    return Report(title, sections, _machines(sections), side_by_side)


def printable(value: Any) -> Any:
    """The JSON value without characters that would break a page, a plot or a file."""
    if isinstance(value, str):
        return "".join(
            " " if letter.isspace() else letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}"
            for letter in value
        )
    if isinstance(value, dict):
        return {printable(key): printable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [printable(entry) for entry in value]
    return value


def _machines(sections: Sequence[Section]) -> Table:
    """Everything that determines comparability: one column per record, differing rows marked."""
    records = [section.record for section in sections]
    rows = [
        ("file", [section.name for section in sections]),
        ("question", [section.question for section in sections]),
        ("measured", [record["created"].replace("T", " ").replace("+00:00", " UTC") for record in records]),
        ("whole", ["yes" if record["complete"] else "no: interrupted" for record in records]),
    ]
    present = {name for record in records for name in record["environment"]}
    names = [name for name in ENVIRONMENT if name in present]
    environment = [
        (ENVIRONMENT.get(name, name), [_text_of(name, record["environment"].get(name)) for record in records])
        for name in [*names, *sorted(present - {*names})]  # a newer record may hold more
    ]
    marks = " Rows marked ≠ differ." if len(sections) > 1 else ""
    differing = [name for name, _ in _differing(environment)]
    return _columns(
        f"What each record was measured on.{marks}", sections, rows + environment, differing=differing
    )


def _text_of(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "memory_bytes":
        return f"{digits(value / 2**30)} GiB"
    if name == "clock_resolution_s":
        return f"{value:g} s"
    if name == "capability":
        return ".".join(map(str, value))
    return str(value)


def _differing(rows: Iterable[Row]) -> list[Row]:
    return [(name, texts) for name, texts in rows if len(set(texts)) > 1]


def _columns(
    caption: str,
    sections: Sequence[Section],
    rows: Iterable[Row],
    *,
    numbers: bool = False,
    differing: Sequence[str] = (),
) -> Table:
    """A table with a column for each record."""
    headings = ["", *(section.column for section in sections)]
    cells = [dict(zip(headings, (name, *texts), strict=True)) for name, texts in rows]
    return Table(caption, cells, headings[:1] if numbers else headings, differing)


def _side_by_side(kind: str, every: Sequence[Section]) -> Iterator[Table | str]:
    """Measurements shared by several records of one kind, and differences between their configs."""
    sections = [section for section in every if section.record["kind"] == kind]
    if len(sections) < 2:
        return
    what = sections[0].question.capitalize()
    shared = _shared(sections)
    for title, rows in shared.items():
        caption = f"{what}, {title}: medians, and ratios with their 95 % intervals"
        yield _columns(caption, sections, rows.items(), numbers=True)
    if not shared:
        yield f"{what}: no two of these records measured the same shape."
        return
    configs = [section.record.get("config", {}) for section in sections]
    config_rows = [
        (name, [str(config.get(name, "–")) for config in configs]) for name in dict.fromkeys(chain(*configs))
    ]
    if differing := _differing(config_rows):
        caption = "Where the configs of these records differ."
        yield _columns(caption, sections, differing, differing=[name for name, _ in differing])


def _shared(sections: Sequence[Section]) -> dict[str, dict[str, list[str]]]:
    """By setting and name, the values of every record, for settings measured by more than one record."""
    records = [
        {one.title: one.comparable for one in section.summary.settings if one.comparable}
        for section in sections
    ]
    tables = {}
    for title in dict.fromkeys(chain(*records)):
        found = [record.get(title, {}) for record in records]
        if sum(map(bool, found)) > 1:
            names = dict.fromkeys(chain(*found))
            tables[title] = {name: [values.get(name, "–") for values in found] for name in names}
    return tables
