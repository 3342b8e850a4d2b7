"""Tables, progress and colours on a terminal of 80 columns, in a pipe, and where $COLUMNS says otherwise."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

Process = Callable[..., CompletedProcess[str]]
Run = Callable[..., str]

CODES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
BOX = "│┃├└┌┏┡─━"
ATTENTION = """\
import torch
def attend(q, k, v):
    att = q @ k.transpose(-2, -1) * 8 ** -0.5
    att = torch.softmax(att, dim=-1)
    return att @ v
"""


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Run a command with a terminal of some width on stdin, and also on stdout and stderr unless piped."""

    def on_a_terminal(*words: object, columns: int = 80, piped: bool = False, **changes: str) -> str:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        command = [sys.executable, "-m", "flashmore", *map(str, words)]
        variables = environment | {"TERM": "xterm-256color"} | changes
        out, err = (subprocess.PIPE, None) if piped else (theirs, theirs)
        process = subprocess.Popen(command, env=variables, stdin=theirs, stdout=out, stderr=err)
        os.close(theirs)
        printed = b""
        if piped:
            printed, _ = process.communicate(timeout=300)
        else:
            try:
                while piece := os.read(ours, 65536):
                    printed += piece
            except OSError:  # Linux: the other side is closed
                pass
        os.close(ours)
        assert process.wait(300) in (0, 1)
        return printed.decode()

    return on_a_terminal


def lines_of_tables(printed: str) -> list[str]:
    lines = (CODES.sub("", line).rstrip("\r") for line in printed.split("\n"))
    return [line for line in lines if line and line[0] in BOX]


@pytest.mark.parametrize("verb", ["look", "compare", "explain"])
def test_a_table_fits_the_terminal_or_80_columns_in_a_pipe(
    verb: str, run: Run, names_file: Path, trained: Path
) -> None:
    files = {"look": [names_file], "compare": [trained] * 9, "explain": []}
    settings: list[tuple[int, dict[str, Any], int]] = [
        (80, {}, 80),
        (118, {"piped": True}, 80),
        (118, {"piped": True, "COLUMNS": "60"}, 60),
        (118, {"piped": True, "COLUMNS": "0"}, 80),
        (80, {"piped": True, "FORCE_COLOR": "1"}, 80),
    ]
    for columns, options, most in settings:
        lines = lines_of_tables(run(verb, *files[verb], columns=columns, **options))
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
    run: Run, quick: tuple[object, ...], tmp_path: Path
) -> None:
    words = [*quick[:2], "--n-layer", 1, "--n-embd", 16, "--max-steps", 400, "--device", "cpu", "--speedups"]
    printed = run(*words, "none", "--out", tmp_path / "run")
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
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        printed = run("upgrade", "model.py", **options)
        assert ("\x1b[31m      -    att = torch.softmax" in printed) == colored
        assert ("\x1b[32m      +" in printed) == colored
        assert ("\x1b[" in printed) == colored
    assert "\x1b[32m+    return" in run("upgrade", "model.py", "--diff")
    assert "\x1b[" not in run("upgrade", "model.py", "--diff", NO_COLOR="1")
