"""Tables, progress and colours on a terminal of 80 columns, in a pipe, and where $COLUMNS says otherwise."""

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

Process = Callable[..., CompletedProcess[str]]
Terminal = Callable[..., tuple[int, str]]

CODES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
BOX = "│┃├└┌┏┡─━"
ATTENTION = """\
import torch
def attend(q, k, v):
    att = q @ k.transpose(-2, -1) * 8 ** -0.5
    att = torch.softmax(att, dim=-1)
    return att @ v
"""


def lines_of_tables(printed: str) -> list[str]:
    lines = (CODES.sub("", line).rstrip("\r") for line in printed.split("\n"))
    return [line for line in lines if line and line[0] in BOX]


@pytest.mark.parametrize("verb", ["look", "compare", "explain"])
def test_a_table_fits_the_terminal_or_80_columns_in_a_pipe(
    verb: str, on_a_terminal: Terminal, names_file: Path, trained: Path
) -> None:
    files: dict[str, list[object]] = {
        "look": [names_file],
        "compare": [trained] * 9,
        "explain": ["--device", "cpu"],
    }
    settings: list[tuple[int, dict[str, Any], int]] = [
        (80, {}, 80),
        (118, {"piped": True}, 80),
        (118, {"piped": True, "COLUMNS": "60"}, 60),
        (118, {"piped": True, "COLUMNS": "0"}, 80),
        (80, {"piped": True, "FORCE_COLOR": "1"}, 80),
    ]
    for columns, options, most in settings:
        code, printed = on_a_terminal(verb, *files[verb], columns=columns, **options)
        lines = lines_of_tables(printed)
        assert code == 0
        assert lines
        assert max(map(len, lines)) <= most


def test_compared_runs_that_do_not_fit_get_a_table_of_their_own(process: Process, trained: Path) -> None:
    done = process("compare", *[trained] * 9, "--count", 2)
    rows = [line.split("│")[2:-1] for line in done.stdout.splitlines() if line.startswith("│ run ")]
    assert len(rows) > 1
    assert [int(cell) for row in rows for cell in row] == [*range(1, 10)]
    assert done.stdout.splitlines()[-9:] == [f"run {number}: {trained}" for number in range(1, 10)]


def test_no_link_of_the_speedups_is_broken(process: Process) -> None:
    from flashmore.speedups import CATALOGUE

    done = process("speedups", "--device", "cpu")
    assert done.stdout.splitlines().count("  nothing") == 0
    pages = [line.strip() for line in done.stdout.splitlines() if line.startswith("  https://")]
    assert pages == [entry.page for entry in CATALOGUE.values()]
    others = [line for line in done.stdout.splitlines() if "https://" not in line]
    assert max(map(len, others)) <= 80


def test_training_shows_a_bar_on_80_columns_and_the_time_left(
    on_a_terminal: Terminal, quick: tuple[object, ...], tmp_path: Path
) -> None:
    words = [*quick[:2], "--n-layer", 1, "--n-embd", 16, "--max-steps", 400, "--device", "cpu", "--speedups"]
    _, printed = on_a_terminal(*words, "none", "--out", tmp_path / "run")
    bars = [CODES.sub("", line) for line in re.split(r"[\r\n]", printed) if "━" in line and "step" in line]
    assert bars
    assert max(map(len, bars)) <= 80
    fitted = CODES.sub("", printed).partition("for 112 items:")[2].partition("speed-ups:")[0]
    assert {"learning-rate", "0.004,", "weight-decay"} <= {*fitted.split()}, "no word is broken"
    assert re.search(r"transformer ━{10,}[╸╺━]* step \d+/400 loss \d\.\d{4}  \d+\.\d\d ms a step ", bars[-1])


def test_a_pipe_gets_plain_lines_even_with_colours_and_between_evaluations(
    call: Process, quick: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashmore.training.progress.QUIET_SECONDS", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = call(*quick[:-4], "--max-steps", 50, "--eval-interval", 25, "--out", tmp_path / "run")
    lines = [line.split("  ") for line in done.stderr.splitlines() if line.startswith("step ")]
    assert [step for step, *_ in lines] == [f"step {n}" for n in (10, 20, 25, 30, 40, 50)]
    assert ["validation" in line[-2] for line in lines[:-1]] == [False, False, True, False, False]
    assert all(line[-1].endswith(" s left") for line in lines[:-1])
    assert "\r" not in done.stderr
    assert "\x1b[?25l" not in done.stderr


def test_diffs_are_coloured_on_a_terminal_and_where_asked_for(
    on_a_terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.py").write_text(ATTENTION)
    monkeypatch.chdir(tmp_path)
    settings: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"piped": True}, False),
        ({"piped": True, "FORCE_COLOR": "1"}, True),
    ]
    for options, colored in settings:
        _, printed = on_a_terminal("upgrade", "model.py", **options)
        assert ("\x1b[31m      -    att = torch.softmax" in printed) == colored
        assert ("\x1b[32m      +" in printed) == colored
        assert ("\x1b[" in printed) == colored
    assert "\x1b[32m+    return" in on_a_terminal("upgrade", "model.py", "--diff")[1]
    assert "\x1b[32m" not in on_a_terminal("upgrade", "model.py", "--diff", NO_COLOR="1")[1]
