"""A report as SARIF 2.1.0, which code scanning services and editors read.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flashmore.upgrade.annotations import WARNED, in_repository, message, places, region, repository
from flashmore.upgrade.report import FileReport, Report, SiteReport
from flashmore.upgrade.rules import RULES
from flashmore.upgrade.rules.explanation import page
from flashmore.upgrade.rules.rule import Rule
from flashmore.upgrade.site import Edit
from flashmore.upgrade.text import Text

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_BASE = "%SRCROOT%"
"""What relative URIs are relative to: the root of the repository."""


def sarif(report: Report) -> dict[str, Any]:
    """One SARIF document with one run.

    Places that can be rewritten have a fix. Files that were not read are notifications. Places in notebooks
    have neither region nor fix, for the lines of a cell are not those of its file.
    """
    results = [_result(file, place) for file in report.files for place in places(file)]
    not_read = [
        {
            "level": "warning",
            "message": {"text": one.message},
            "locations": [{"physicalLocation": {"artifactLocation": _location(Path(one.path))}}],
        }
        for one in report.not_read
    ]
    invocation: dict[str, Any] = {"executionSuccessful": True, "toolExecutionNotifications": not_read}
    driver = {"name": "flashmore", "version": version("flashmore"), "rules": list(map(_rule, RULES))}
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "originalUriBaseIds": {_BASE: {"uri": f"{repository().as_uri()}/"}},
        "columnKind": "unicodeCodePoints",
        "newlineSequences": ["\r\n", "\n", "\r"],
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: Rule) -> dict[str, Any]:
    help_text = page(rule)
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.summary},
        "helpUri": rule.documentation,
        "help": {"text": help_text, "markdown": help_text},
    }


def _result(file: FileReport, place: SiteReport) -> dict[str, Any]:
    site, text = place.site, file.text_of(place)
    line, column, end_line, end_column = region(text, place)
    where = {"startLine": line, "startColumn": column, "endLine": end_line, "endColumn": end_column}
    location: dict[str, Any] = {"artifactLocation": _location(file.path)}
    if site.cell is None:
        location["region"] = where
    result: dict[str, Any] = {
        "ruleId": site.code,
        "ruleIndex": next(index for index, rule in enumerate(RULES) if rule.code == site.code),
        "level": "warning" if site.verdict in WARNED else "note",
        "message": {"text": message(place, advice=True)},
        "locations": [
            {
                "physicalLocation": location,
                "logicalLocations": [{"fullyQualifiedName": site.symbol}],
            }
        ],
    }
    if site.edits and site.cell is None and place.passed is not False and not place.written:
        replacements = [_replacement(text, edit) for edit in sorted(site.edits, key=lambda each: each.start)]
        change = {"artifactLocation": _location(file.path), "replacements": replacements}
        result["fixes"] = [{"description": {"text": site.reason}, "artifactChanges": [change]}]
    return result


def _replacement(text: Text, edit: Edit) -> dict[str, Any]:
    (line, column), (end_line, end_column) = _position(text, edit.start), _position(text, edit.end)
    where = {"startLine": line, "startColumn": column, "endLine": end_line, "endColumn": end_column}
    return {"deletedRegion": where, "insertedContent": {"text": edit.text}}


def _position(text: Text, offset: int) -> tuple[int, int]:
    index = text.offset_line(offset)
    return index + 1, offset - text.starts[index] + 1


def _location(path: Path) -> dict[str, str]:
    name = in_repository(path)
    if Path(name).is_absolute():
        return {"uri": Path(name).as_uri()}
    return {"uri": quote(name, errors="surrogateescape"), "uriBaseId": _BASE}
