"""Combines records into one report, machines side by side, then each record; as HTML and as Markdown.

A report only formats: every number in it is from a record, except for units and ratios between records.
"""

import re
import shlex
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flashmore.benchmark.plots import INK
from flashmore.benchmark.report.summaries import QUESTIONS, summarize
from flashmore.benchmark.report.values import Plot, Record, Summary, Table, digits

ENVIRONMENT = {
    "device": "computes on",
    "device_name": "device",
    "capability": "compute capability",
    "cpu_name": "CPU",
    "cpu_count": "CPUs",
    "threads": "threads",
    "ranks": "processes of torchrun",
    "memory_bytes": "main memory",
    "os": "system",
    "python": "Python",
    "torch": "torch",
    "cuda": "CUDA of torch",
    "cudnn": "cuDNN",
    "commit": "flashmore's commit",
    "clock_resolution_s": "clock resolution",
    "fuse_attention": "attention patterns fused by Inductor",
}
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
REFERENCE = re.compile(r'(?:url\(|href=")#([^)"]+)')
FILL = re.compile(r"(fill: )(#\w+)")
SMALLEST = 0.75
"""A plot may shrink to this share of its size before its frame scrolls; below, its text is illegible."""
SPECIAL = re.compile(r"([\\`*_{}\[\]<>&|#~$])")
BETWEEN = "and ratios of the medians between the records"
HOW_TO_READ = (
    "A time is the median of all samples; half of them lie between the quartiles. All variants of a record "
    "ran in short alternating blocks on one machine.",
    "manual / flash = 1.2 means that flash is 1.2 times as fast as manual. The interval contains the true "
    "ratio in 95 of 100 such measurements. The verdict is no difference only if the whole interval lies "
    "within ±3 % (or --equivalence), faster or slower if it excludes 1, and otherwise inconclusive.",
    "Compare variants within a record. Two records also differ in everything marked ≠ in the table of "
    "machines, and perhaps in the machine's speed: the ratio of their medians has no interval.",
)


@dataclass(frozen=True)
class Section:
    """One record of a report, and the name of its file."""

    number: int
    name: str
    record: Record
    summary: Summary

    @property
    def title(self) -> str:
        """The heading of its sections."""
        return f"Record {self.number}: {self.summary.question} on {self.summary.machine} ({self.name})"

    @property
    def column(self) -> str:
        """The heading of its column in side-by-side tables."""
        return f"{self.number}: {self.summary.machine} ({self.name})"


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
    sections = []
    for number, (name, record) in enumerate(printable([*map(list, records)]), start=1):
        summary = summarize(record)
        plots = [replace(plot, title=f"Record {number}: {plot.title}") for plot in summary.plots]
        sections.append(Section(number, name, record, replace(summary, plots=plots)))
    machines = dict.fromkeys(section.summary.machine for section in sections)
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
        ("question", [section.summary.question for section in sections]),
        ("measured", [record["created"].replace("T", " ").replace("+00:00", " UTC") for record in records]),
        ("whole", ["yes" if record["complete"] else "no: interrupted" for record in records]),
    ]
    present = {name for record in records for name in record["environment"]}
    found = [record["environment"] for record in records]
    environment = [
        (ENVIRONMENT.get(name, name), [_text_of(name, one.get(name, "")) for one in found])
        for name in [*ENVIRONMENT, *sorted(present - {*ENVIRONMENT})]  # a newer record may hold more
        if name in present
    ]
    marks = " Rows marked ≠ differ." if len(sections) > 1 else ""
    differing = [name for name, texts in environment if len(set(texts)) > 1]
    return _columns(f"What each record was measured on.{marks}", sections, [*rows, *environment], differing)


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


def _columns(
    caption: str,
    sections: Sequence[Section],
    rows: Iterable[tuple[str, Sequence[str]]],
    differing: Sequence[str] | None = None,
) -> Table:
    """A table with a column for each record: of numbers, or of words with marked rows."""
    headings = ["", *(section.column for section in sections)]
    cells = [dict(zip(headings, (name, *texts), strict=True)) for name, texts in rows]
    return Table(caption, cells, headings[:1] if differing is None else headings, differing or ())


def _side_by_side(kind: str, every: Sequence[Section]) -> Iterator[Table | str]:
    """Measurements shared by several records of one kind, and differences between their configs."""
    sections = [section for section in every if section.record["kind"] == kind]
    if len(sections) < 2:
        return
    what = QUESTIONS[kind].capitalize()
    by_setting = [
        {one.title: one.comparable for one in section.summary.settings if one.comparable}
        for section in sections
    ]
    titles = Counter(chain(*by_setting))
    shared = [title for title, count in titles.items() if count > 1]
    for title in shared:
        caption = f"{what}, {title}: medians, ratios with their 95 % intervals, {BETWEEN}"
        yield _columns(caption, sections, _aligned([values.get(title, {}) for values in by_setting]))
    if not shared:
        yield f"{what}: no two of these records measured the same shape."
        return
    configs = _aligned([section.record.get("config", {}) for section in sections])
    if differing := [(name, texts) for name, texts in configs if len(set(texts)) > 1]:
        caption = "Where the configs of these records differ."
        yield _columns(caption, sections, differing, [name for name, _ in differing])


def _aligned(columns: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Rows of values that have the same name; times are followed by the ratio of the first to each."""
    for name in dict.fromkeys(chain(*columns)):
        values = [column.get(name, "") for column in columns]
        times = [value for value in values if isinstance(value, float) and name.endswith(", ms")]
        yield name, [digits(value) if times and value else str(value) for value in values]
        if len(times) > 1:
            ratios = [value and f"{times[0] / value:.2f}" for value in values]
            yield f"{name.removesuffix(', ms')}: first / this", ratios


def html_page(report: Report) -> str:
    """Render a report as a page; all values from records are escaped."""
    return _render("page.html", report, svg_element=svg_element, version=version("flashmore"))


def markdown(report: Report, stem: str) -> tuple[str, dict[str, bytes]]:
    """Render a report as Markdown.

    Args:
        stem: prefix of the plots' file names.

    Returns:
        The text, and the plots by file name.
    """
    pictures = {
        f"{stem}-record-{section.number}-{plot.name}.svg": plot.svg
        for section in report.sections
        for plot in section.summary.plots
    }
    return _render("page.md", report, escaped_for_markdown, stem=stem), pictures


def _render(name: str, report: Report, finalize: Callable[[Any], Markup] | None = None, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("flashmore.benchmark.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template(name)
    return template.render(report=report, how_to_read=HOW_TO_READ, shell=shlex.join, **values)


def escaped_for_markdown(value: Any) -> Markup:
    """Escape text for Markdown and the HTML in it; called for every value of the template."""
    return value if isinstance(value, Markup) else Markup(SPECIAL.sub(r"\\\1", str(value)))


def svg_element(plot: Plot, prefix: str) -> Markup:
    """A plot as an `<svg>` element for a page, with prefixed ids."""
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    root = ET.fromstring(plot.svg)
    referenced = set(REFERENCE.findall(plot.svg.decode()))
    for element in root.iter():
        if element.get("id") not in referenced:
            element.attrib.pop("id", None)
        element.attrib.update({key: _own(element, key, prefix) for key in element.attrib})
    del root.attrib["height"]  # it follows from the width and the viewBox
    width = float(root.attrib["width"].removesuffix("pt"))
    root.attrib |= {"role": "img", "aria-label": plot.title, "style": f"min-width: {SMALLEST * width:.0f}pt"}
    return Markup(ET.tostring(root, encoding="unicode"))


def _own(element: ET.Element, key: str, prefix: str) -> str:
    """Prefix ids and references, and replace the plot's grey and text colour with the page's."""
    value = element.attrib[key].replace("url(#", f"url(#{prefix}").replace(INK, "var(--plot-ink)")
    if key == "id":
        return prefix + value
    if key == f"{{{XLINK}}}href":
        return value.replace("#", f"#{prefix}", 1)
    if element.tag == f"{{{SVG}}}text":  # a line may be paler than a word
        return FILL.sub(r"\1color-mix(in srgb, \2 55%, var(--ink))", value)
    return value
