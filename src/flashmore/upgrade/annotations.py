"""The places of a report with one line each: for terminals and editors, and for GitHub Actions."""

import os
from collections.abc import Iterator
from pathlib import Path

from flashmore.upgrade.report import FileReport, Report, SiteReport
from flashmore.upgrade.rules import rule
from flashmore.upgrade.text import Text

WARNED = ("rewritten",)
"""Verdicts of places that somebody should change; the others are notices."""


def concise(report: Report) -> Iterator[str]:
    """`path:line:column: code message` for each place, the files that were not read, and the summary."""
    for file, places in _places(report):
        for place in places:
            line, column, _, _ = region(file.text_of(place), place)
            cell = "" if place.site.cell is None else f"cell {place.site.cell}:"
            yield f"{file.path}:{cell}{line}:{column}: {place.site.code} {message(place)}"
    for one in report.not_read:
        yield str(one)
    yield report.summary()


def github(report: Report) -> Iterator[str]:
    """Workflow commands that GitHub shows beside the lines, and the summary.

    https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
    """
    for file, places in _places(report):
        for place in places:
            properties: dict[str, str | int] = {"file": in_repository(file.path)}
            if place.site.cell is None:  # the lines of a notebook's cell are not those of its file
                line, column, end_line, end_column = region(file.text_of(place), place)
                properties |= {"line": line, "col": column, "endLine": end_line, "endColumn": end_column}
            properties["title"] = f"flashmore {place.site.code} ({rule(place.site.code).name})"
            level = "warning" if place.site.verdict in WARNED else "notice"
            yield _command(level, properties, message(place, advice=True))
    for one in report.not_read:
        where: dict[str, str | int] = {"file": in_repository(Path(one.path)), "title": "flashmore"}
        yield _command("warning", where, one.message)
    yield report.summary()


def message(place: SiteReport, *, advice: bool = False) -> str:
    """What is said of a place in one sentence, or with what to do about it."""
    site = place.site
    verdict: str = "can be rewritten" if site.verdict == "rewritten" and not place.written else site.verdict
    if place.passed is not None:
        verdict += " (tested)" if place.passed else " (failed the test)" if place.refuted else " (not tested)"
    said = f"{verdict}: {site.reason}" if site.reason else verdict
    if advice and site.advice:
        said = f"{said}; {site.advice}"
    return f"cell {site.cell}, line {site.line}: {said}" if advice and site.cell is not None else said


def places(file: FileReport) -> list[SiteReport]:
    """The places of a file that are worth a line: all but those that are fused already."""
    return [each for each in file.sites if each.site.verdict != "already fused"]


def region(text: Text, place: SiteReport) -> tuple[int, int, int, int]:
    """Line and column of a place's first character, and of the one after its last; from 1.

    A place is some whole lines without their indentation.
    """
    site = place.site
    first, last = text.lines[site.line - 1], text.lines[site.end_line - 1].rstrip()
    return site.line, len(first) - len(first.lstrip()) + 1, site.end_line, len(last) + 1


def in_repository(path: Path) -> str:
    """A path with slashes, relative to the repository around the working directory or, outside, absolute."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 (links stay, as the repository has them)
    top = repository()
    return (absolute.relative_to(top) if absolute.is_relative_to(top) else absolute).as_posix()


def repository() -> Path:
    """The repository around the working directory; this directory where there is none."""
    here = Path.cwd()
    return next((each for each in (here, *here.parents) if (each / ".git").exists()), here)


def _places(report: Report) -> Iterator[tuple[FileReport, list[SiteReport]]]:
    return ((file, places(file)) for file in report.files)


def _command(level: str, properties: dict[str, str | int], said: str) -> str:
    given = ",".join(f"{name}={_escaped(str(value), ':,')}" for name, value in properties.items())
    return f"::{level} {given}::{_escaped(said)}"


def _escaped(text: str, others: str = "") -> str:
    """Text as a value of a workflow command: the percent sign first, which escapes begin with."""
    for character in ("%", "\r", "\n", *others):
        text = text.replace(character, f"%{ord(character):02X}")
    return text
