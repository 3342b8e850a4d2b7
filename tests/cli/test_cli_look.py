"""`flashmore look` shows what a list holds, as a table, a picture and JSON."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from matplotlib.image import imread

Call = Callable[..., CompletedProcess[str]]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("name,year\nanna,1\nbob,2\nanna,3\ncy,4\nd\u200bn,5\n", encoding="utf-8")
    return path


def test_a_list_is_shown_on_a_terminal_of_80_columns(
    table: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "80")
    done = call("look", table, "--column", "name")
    assert done.returncode == 0
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "/" not in line)
    for told in (
        "4 different in 5 lines",
        "2 train, 1 validation, 1 test",
        "2 to 4",
        "'anna'",
        "'d\\u200bn'",
    ):
        assert told in done.stdout


def test_json_and_the_picture_hold_the_same_counts(
    table: Path, call: Call, document: Callable[..., Any], tmp_path: Path
) -> None:
    found = document("look", table, "--column", "name", "--picture", tmp_path / "new" / "look.png")
    assert (found["items"], found["lengths"]) == (4, {"2": 1, "3": 2, "4": 1})
    assert [finding["count"] for finding in found["findings"]] == [1, 1]
    assert imread(tmp_path / "new" / "look.png")[0, 0, :3].tolist() == [1, 1, 1]
    assert "looks like a CSV with the columns name, year" in call("look", table).stderr


def test_what_training_refuses_is_refused(tmp_path: Path, call: Call, refusal: Callable[..., str]) -> None:
    (tmp_path / "one.txt").write_text("anna\n")
    assert "at least 3 different items" in refusal(call("look", tmp_path / "one.txt"), 2)
    assert "ends in .png" in refusal(call("look", "--picture", "x.jpg"), 2)


def test_the_range_of_weights_is_shown(
    table: Path, call: Call, document: Callable[..., Any], refusal: Callable[..., str]
) -> None:
    table.write_text("name,n\nanna,1000\nbob,1000\nanna,3000\ncy,0.25\n")
    done = call("look", table, "--column", "name", "--weight", "n")
    assert "│ 0.25 to 4,000, total 5,000.25 " in done.stdout
    assert "│ effective sample size 1 " in done.stdout
    found = document("look", table, "--column", "name", "--weight", "n")
    assert found["weights"].keys() == {"least", "most", "total", "effective"}
    assert "--column with --weight" in refusal(call("look", table, "--weight", "n"), 2)
