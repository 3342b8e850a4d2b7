"""Progress appears when work takes long, on stderr, and never when it is quick."""

import os
import pty
import subprocess
import sys
import time

import pytest

from flashmore.cli.waiting import Waiting


def test_quick_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Waiting("searching", "files", patience=60) as waiting:
        waiting.reach(3, 9)
    assert capsys.readouterr() == ("", "")


def test_long_work_says_one_line_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Waiting("searching", "files", patience=0) as waiting:
        waiting.timer.join()
        waiting.reach(3, 9)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("searching: ")
    assert err.count("\n") == 1


def test_on_a_terminal_a_bar_moves_and_leaves() -> None:
    code = (
        "import time; from flashmore.cli.waiting import Waiting\n"
        "with Waiting('searching', 'files', patience=0) as waiting:\n"
        "    waiting.timer.join(); waiting.reach(3, 9); time.sleep(0.5)\n"
    )
    ours, theirs = pty.openpty()
    done = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    shown, began = b"", time.monotonic()
    while time.monotonic() - began < 60:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert done.wait() == 0
    assert done.stdout is not None
    assert done.stdout.read() == b""
    done.stdout.close()
    assert b"3/9 files" in shown
