"""A report as one HTML page that loads nothing from anywhere and runs no script."""

from collections.abc import Iterator
from html import escape
from importlib import resources
from importlib.metadata import version
from itertools import count
from string import Template

from flashmore.benchmark.report import parts
from flashmore.benchmark.report.parts import Cell, Part, Report
from flashmore.benchmark.report.pictures import svg_element


def html_page(report: Report) -> str:
    """Write a report as a page; everything that comes from a record is escaped."""
    template = resources.files("flashmore.benchmark.report").joinpath("page.html").read_text(encoding="utf-8")
    titles = [part.text for part in report.parts if isinstance(part, parts.Heading) and part.level == 2]
    contents = "\n".join(
        f'<li><a href="#section-{number}">{escape(title)}</a></li>' for number, title in enumerate(titles, 1)
    )
    return Template(template).substitute(
        title=escape(report.title),
        contents=contents,
        body="\n".join(_sections(report.parts)),
        version=escape(version("flashmore")),
    )


def _sections(body: tuple[Part, ...]) -> Iterator[str]:
    numbers = count(1)
    open_one = False
    for part in body:
        if isinstance(part, parts.Heading) and part.level == 2:
            if open_one:
                yield "</section>"
            number = next(numbers)
            yield f'<section aria-labelledby="section-{number}">'
            yield f'<h2 id="section-{number}">{escape(part.text)}</h2>'
            open_one = True
        else:
            yield _html(part)
    if open_one:
        yield "</section>"


def _html(part: Part) -> str:
    match part:
        case parts.Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case parts.Paragraph(text, strong):
            return f'<p class="finding">{escape(text)}</p>' if strong else f"<p>{escape(text)}</p>"
        case parts.Points(items):
            return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in items) + "\n</ul>"
        case parts.Notice(title, text):
            return f'<p class="notice"><strong>{escape(title)}.</strong> {escape(text)}</p>'
        case parts.Command(line):
            return _frame("Command", f"<pre><code>{escape(line)}</code></pre>")
        case parts.Table():
            return _frame(f"Table: {part.caption}", _table(part))
        case parts.Picture():
            plot = _frame(f"Plot: {part.title}", svg_element(part))
            caption = f"{escape(part.title)}. {escape(part.description)}"
            return f"<figure>\n{plot}\n<figcaption>{caption}</figcaption>\n</figure>"


def _frame(label: str, content: str) -> str:
    """What may be wider than a phone scrolls by itself, by finger, mouse and keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">\n{content}\n</div>'


def _table(table: parts.Table) -> str:
    kinds = ['class="number"' if column in table.numbers else "" for column in table.columns]
    head = "".join(
        f"<th scope='col' {kind}>{escape(column)}</th>" if column else "<td></td>"
        for column, kind in zip(table.columns, kinds, strict=True)
    )
    body = "\n".join(_row(row, kinds) for row in table.rows)
    numeric = ' class="numbers"' if table.numbers else ""
    return (
        f"<table{numeric}>\n<caption><span>{escape(table.caption)}</span></caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    )


def _row(row: tuple[str | Cell, ...], kinds: list[str]) -> str:
    cells = []
    for place, (cell, kind) in enumerate(zip(row, kinds, strict=True)):
        text = escape(cell if isinstance(cell, str) else cell.text)
        if isinstance(cell, Cell) and cell.tone != "plain":
            text = f'<span class="{cell.tone.replace(" ", "-")}">{text}</span>'
        cells.append(f"<th scope='row' {kind}>{text}</th>" if place == 0 else f"<td {kind}>{text}</td>")
    return f"<tr>{''.join(cells)}</tr>"
