"""A report as Markdown (GitHub's flavour), with its plots as SVG files beside it."""

import re

from flashmore.benchmark.report import parts
from flashmore.benchmark.report.parts import Cell, Part, Report
from flashmore.benchmark.report.pictures import svg_file

SPECIAL = re.compile(r"([\\`*_{}\[\]<>&|#~$])")


def markdown(report: Report, stem: str) -> tuple[str, dict[str, bytes]]:
    """Write a report as Markdown.

    Args:
        report: what to write.
        stem: what the names of its pictures begin with.

    Returns:
        The text, and the pictures by the names that it gives them.
    """
    pictures = {_file(part, stem): svg_file(part) for part in report.parts if isinstance(part, parts.Picture)}
    body = "\n\n".join(_markdown(part, stem) for part in report.parts)
    return f"# {_escaped(report.title)}\n\n{body}\n", pictures


def _markdown(part: Part, stem: str) -> str:
    match part:
        case parts.Heading(text, level):
            return f"{'#' * level} {_escaped(text)}"
        case parts.Paragraph(text, strong):
            return f"**{_escaped(text)}**" if strong else _escaped(text)
        case parts.Points(items):
            return "\n".join(f"- {_escaped(item)}" for item in items)
        case parts.Notice(title, text):
            return f"> **{_escaped(title)}.** {_escaped(text)}"
        case parts.Command(line):
            longest = max(map(len, re.findall("`+", line)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}sh\n{line}\n{fence}"
        case parts.Table():
            return _table(part)
        case parts.Picture():
            return f"![{_escaped(part.title)}](<{_file(part, stem)}>)\n\n{_escaped(part.description)}"


def _table(table: parts.Table) -> str:
    marks = ["---:" if column in table.numbers else "---" for column in table.columns]
    lines = [
        list(map(_escaped, table.columns)),
        marks,
        *([_cell(cell) for cell in row] for row in table.rows),
    ]
    return f"{_escaped(table.caption)}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str) or cell.tone in ("plain", "no difference"):
        return _escaped(cell if isinstance(cell, str) else cell.text)
    return f"**{_escaped(cell.text)}**"


def _file(picture: parts.Picture, stem: str) -> str:
    return f"{stem}-{picture.name}.svg"


def _escaped(text: str) -> str:
    """Text that Markdown and the HTML in it leave as it is."""
    return SPECIAL.sub(r"\\\1", text)
