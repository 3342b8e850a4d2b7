"""One or several records as one report: machines side by side, then each record by itself.

A report only formats: every number in it stands in a record, but for units.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flashmore.benchmark.report import ablation, attention, choose, step
from flashmore.benchmark.report.parts import (
    Cell,
    Command,
    Comparable,
    Heading,
    Notice,
    Paragraph,
    Part,
    Points,
    Record,
    Report,
    Table,
)
from flashmore.benchmark.wording import digits, machine

QUESTIONS = {
    "step": "training step",
    "attention": "attention alone",
    "choose": "choice of a backend",
    "ablation": "ablation of speed-ups",
}
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
INCOMPLETE = Notice(
    "Incomplete", "The measuring was interrupted. What stands here was finished; the rest is missing."
)
HOW_TO_READ = (
    "A time is the median of all samples; half of them lie between the quartiles. All variants of a record "
    "ran in short alternating blocks on one machine.",
    "manual / flash = 1.2 means that flash is 1.2 times as fast as manual. The interval holds the true ratio "
    "in 95 of 100 such measurements. The verdict is faster or slower only where the whole interval lies "
    "outside 0.99 – 1.01.",
    "Compare variants within a record. Between two records, everything that the table of machines marks with "
    "≠ differs too.",
)


@dataclass(frozen=True)
class Source:
    """A record and what it is called."""

    number: int
    name: str
    """Of its file."""
    record: Record

    @property
    def title(self) -> str:
        """Which record, which question, which machine."""
        return f"Record {self.number}: {self.question} on {machine(self.record['environment'])}"

    @property
    def question(self) -> str:
        """What was measured."""
        return QUESTIONS[self.record["kind"]]

    @property
    def column(self) -> str:
        """The heading of its column where records stand side by side."""
        return f"{self.number}: {machine(self.record['environment'])}"


def report_on(records: Sequence[tuple[str, Record]]) -> Report:
    """Arrange records into a report.

    Args:
        records: the name of each record's file, and the record as `read_record` gives it.
    """
    sources = [
        Source(number, printable(name), printable(record))
        for number, (name, record) in enumerate(records, start=1)
    ]
    machines = dict.fromkeys(machine(source.record["environment"]) for source in sources)
    parts: list[Part] = [*_at_a_glance(sources), *_machines(sources), *_side_by_side(sources)]
    for source in sources:
        parts += _one(source)
    parts += [Heading("How to read this", 2), Points(HOW_TO_READ)]
    return Report(f"flashmore: measured on {' and on '.join(machines)}", tuple(parts))


def printable(value: Any) -> Any:
    """The same JSON value, without characters that would break a page, a picture or a file."""
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


def _at_a_glance(sources: Sequence[Source]) -> Iterator[Part]:
    yield Heading("At a glance", 2)
    for source in sources:
        yield Heading(source.title)
        if not source.record["complete"]:
            yield INCOMPLETE
        yield Points(tuple(_findings(source)))


def _findings(source: Source) -> Sequence[str]:
    doubts = [warning["code"] for warning in source.record["warnings"]]
    remarks = [f"Warnings, explained below: {', '.join(dict.fromkeys(doubts))}."] if doubts else []
    match source.record["kind"]:
        case "step":
            return step.findings(source.record) + remarks
        case "attention":
            return attention.findings(source.record) + remarks
        case "choose":
            return choose.findings(source.record) + remarks
        case _:
            return ablation.findings(source.record) + remarks


def _machines(sources: Sequence[Source]) -> Iterator[Part]:
    """All that decides whether two numbers may be compared: a column a record, differing rows marked."""
    yield Heading("Machines", 2)
    columns = ("", *(source.column for source in sources))
    rows: list[tuple[str | Cell, ...]] = [
        ("file", *(source.name for source in sources)),
        ("question", *(source.question for source in sources)),
        (
            "measured",
            *(source.record["created"].replace("T", " ").replace("+00:00", " UTC") for source in sources),
        ),
        ("whole", *("yes" if source.record["complete"] else "no: interrupted" for source in sources)),
    ]
    known = dict(ENVIRONMENT)
    for source in sources:  # a newer record may tell more
        known |= {name: name for name in source.record["environment"] if name not in known}
    for name, meaning in known.items():
        found = [source.record["environment"].get(name) for source in sources]
        if name == "fuse_attention" and not any(name in source.record["environment"] for source in sources):
            continue
        texts = [_environment_text(name, value) for value in found]
        if len(set(texts)) > 1:
            rows.append((Cell(f"≠ {meaning}", "differs"), *(Cell(text, "differs") for text in texts)))
        else:
            rows.append((meaning, *texts))
    marks = " Rows marked ≠ differ." if len(sources) > 1 else ""
    yield Table(f"What each record was measured on.{marks}", columns, tuple(rows))


def _environment_text(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "memory_bytes":
        return f"{digits(value / 2**30)} GiB"
    if name == "clock_resolution_s":
        return f"{value:g} s"
    if name == "capability":
        return ".".join(map(str, value))
    return str(value)


def _side_by_side(sources: Sequence[Source]) -> Iterator[Part]:
    tables: list[Part] = []
    for kind, tables_of, what in (
        ("step", step.comparable, "Training steps"),
        ("ablation", ablation.comparable, "Ablation of speed-ups"),
        ("attention", attention.comparable, "Attention alone, forward and backward"),
    ):
        alike = [source for source in sources if source.record["kind"] == kind]
        if len(alike) < 2:
            continue
        found = _shared([tables_of(source.record) for source in alike])
        columns = ("", *(source.column for source in alike))
        for title, rows in found.items():
            caption = f"{what}, {title}: medians, and ratios with their 95 % intervals"
            tables.append(Table(caption, columns, rows, columns[1:]))
        if not found:
            tables.append(Paragraph(f"{what}: no two of these records measured the same shape."))
        elif kind in ("step", "ablation"):
            tables += step.differences([(source.column, source.record) for source in alike])
    if tables:
        yield Heading("Side by side", 2)
        yield from tables


def _shared(records: Sequence[Comparable]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Tables with a column for each record, of what more than one of them measured."""
    tables = {}
    for title in dict.fromkeys(title for record in records for title in record):
        found = [record.get(title, {}) for record in records]
        if sum(map(bool, found)) > 1:
            names = dict.fromkeys(name for rows in found for name in rows)
            tables[title] = tuple((name, *(rows.get(name, "–") for rows in found)) for name in names)
    return tables


def _one(source: Source) -> Iterator[Part]:
    record = source.record
    yield Heading(source.title, 2)
    if not record["complete"]:
        yield INCOMPLETE
    for warning in record["warnings"]:
        yield Notice(f"Warning: {warning['code']}", f"{warning['message']}. Advice: {warning['advice']}.")
    match record["kind"]:
        case "step":
            yield from step.parts(record, source.number)
        case "attention":
            yield from attention.parts(record, source.number)
        case "choose":
            yield from choose.parts(record)
        case "ablation":
            yield from ablation.parts(record, source.number)
    yield Heading("The command that measured this")
    yield Command(shlex.join(record["command"]))
