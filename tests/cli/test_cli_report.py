"""`flashmore report` as a user calls it: what it writes, and what it leaves alone when it must refuse."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from flashmore.cli.main import main

GOLDEN = Path(__file__).parents[1] / "golden" / "records"
STEP, ATTENTION = GOLDEN / "step-cpu.json", GOLDEN / "attention-cpu.json"
THREE_PARTS = re.compile(r"wanted: .+\n found: .+\n valid: .+\n")


def run(*words: str | Path) -> int:
    return main(["report", *map(str, words)])


def test_writes_the_page_and_the_markdown_with_its_pictures_and_tells_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, text = tmp_path / "new" / "both.html", tmp_path / "both.md"
    assert run(STEP, ATTENTION, "--out", page, "--markdown", text) == 0
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert set(map(Path, capsys.readouterr().out.splitlines())) == written
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    named = re.findall(r"\(<(.+?)>\)", text.read_text(encoding="utf-8"))
    assert written == {page, text, *(tmp_path / name for name in named)}


def test_writes_report_html_where_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(STEP) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_markdown_alone_writes_no_page(tmp_path: Path) -> None:
    assert run(GOLDEN / "choose-cpu.json", "--markdown", tmp_path / "choice.md") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["choice.md"]


def cut_off(text: str) -> str:
    return text[: len(text) // 2]


def of_another_version(text: str) -> str:
    return text.replace('"version":3', '"version":4', 1)


def with_a_field_missing(text: str) -> str:
    return text.replace('"threads"', '"shreds"', 1)


def with_no_number(text: str) -> str:
    return re.sub(r'"median":[0-9.e-]+', '"median":NaN', text, count=1)


def with_no_finite_number(text: str) -> str:
    return re.sub(r'"median":[0-9.e-]+', '"median":1e999', text, count=1)


def another_document(text: str) -> str:
    return json.dumps([text])


def nested_without_end(_: str) -> str:
    return "[" * 200_000


@pytest.mark.parametrize(
    "damage",
    [
        cut_off,
        of_another_version,
        with_a_field_missing,
        with_no_number,
        with_no_finite_number,
        another_document,
        nested_without_end,
    ],
)
def test_one_bad_record_among_good_ones_is_named_and_nothing_is_written(
    damage: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = STEP.read_text(encoding="utf-8")
    bad = tmp_path / "bad.json"
    bad.write_text(damage(text), encoding="utf-8")
    assert bad.read_text(encoding="utf-8") != text
    page = tmp_path / "report.html"
    page.write_text("what stood here before", encoding="utf-8")
    assert run(STEP, bad, "--out", page, "--markdown", tmp_path / "report.md") == 2
    told = capsys.readouterr()
    assert THREE_PARTS.fullmatch(told.err)
    assert "bad.json" in told.err
    assert told.out == ""
    assert page.read_text(encoding="utf-8") == "what stood here before"
    assert {path.name for path in tmp_path.iterdir()} == {"bad.json", "report.html"}


def test_binary_and_missing_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(bytes(range(256)))
    for path in (binary, tmp_path / "none.json", tmp_path):
        assert run(path, "--out", tmp_path / "report.html") == 2
        assert THREE_PARTS.fullmatch(capsys.readouterr().err)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("words", [(), (STEP, "--out", "page.pdf"), (STEP, "--markdown", "page.html")])
def test_wrong_use_exits_2_before_anything_is_read(
    words: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_exits_1_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "folder.html"
    taken.mkdir()
    assert run(STEP, "--out", taken) == 1
    assert THREE_PARTS.fullmatch(capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]
