"""A real process, a real Ctrl-C, and a run that ends as if nothing had happened."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from flashmore.runs import Run
from forks import Forks

pty = pytest.importorskip("pty", reason="needs the terminals of Unix")

Call = Callable[..., CompletedProcess[str]]
STEPS = 600


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    run: Path


@pytest.fixture(scope="module")
def command(names_file: Path) -> list[str]:
    """Long enough to be interrupted, with dropout, whose random numbers must go on too."""
    sizes = ("--model", "mlp", "--n-embd", 16, "--dropout", 0.1, "--device", "cpu")
    pace = ("--max-steps", STEPS, "--eval-interval", 250, "--log-interval", 1)
    words = ("train", names_file, *sizes, *pace, "--json", "--out")
    return [sys.executable, "-m", "flashmore", *map(str, words)]


@pytest.fixture(scope="module")
def cut(command: list[str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Interrupted after some twenty steps, a process that was started as a user starts it."""
    run = tmp_path_factory.mktemp("cut") / "run"
    metrics = run / "metrics.jsonl"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*command, str(run)], env=environment, stdout=pipe, stderr=pipe, encoding="utf-8"
    ) as running:
        while running.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") > 20):
            time.sleep(0.001)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=120)
    return Ended(running.returncode, out, err, run)


@pytest.fixture(scope="module")
def whole(
    command: list[str], environment: dict[str, str], forks: Forks, tmp_path_factory: pytest.TempPathFactory
) -> Ended:
    """The same without Ctrl-C, and with a terminal for its progress."""
    run = tmp_path_factory.mktemp("whole") / "run"
    ours, theirs = pty.openpty()
    with TemporaryFile() as out:
        running = forks.start(
            (*command[1:], run), environment | {"TERM": "xterm"}, (theirs, out.fileno(), theirs)
        )
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 65536):
                seen += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(ours)
        code = running.wait()
        out.seek(0)
        return Ended(code, out.read().decode(), seen.decode(), run)


def test_ctrl_c_saves_and_says_how_to_go_on(cut: Ended, refusal: Callable[..., str]) -> None:
    done = Run.open(cut.run).load_state().step
    assert (cut.code, cut.out) == (130, "")
    assert 20 < done < STEPS
    where = f"Interrupted by Ctrl-C at step {done:,} of {STEPS:,}; saved. Resume with: flashmore "
    assert cut.err.splitlines()[-1].startswith(where)


def test_going_on_as_told_ends_with_the_weights_of_an_uninterrupted_run(
    cut: Ended, whole: Ended, process: Call
) -> None:
    advice = shlex.split(cut.err.partition("flashmore train")[2])
    resumed = process("train", *advice, "--json")
    assert resumed.returncode == whole.code == 0, resumed.stderr
    for run in (cut.run, whole.run):
        assert len(list(run.glob("step-*"))) in (2, 3)
    for path in whole.run.glob("step-*"):
        first, second = (load_file(run / path.name) for run in (cut.run, whole.run))
        assert all(torch.equal(first[tensor], second[tensor]) for tensor in second)
    ended, uninterrupted = json.loads(resumed.stdout), json.loads(whole.out)
    assert ended.keys() == uninterrupted.keys()
    for name in ("steps", "val_loss", "test_loss"):
        assert ended[name] == uninterrupted[name]


def test_on_a_terminal_the_progress_moves_and_the_result_stays_apart(
    whole: Ended, plain: Callable[[str], bool]
) -> None:
    assert plain(whole.out)
    assert json.loads(whole.out)["run"] == str(whole.run)
    assert "\x1b[" in whole.err
    for shown in ("step 600/600", "loss", "ms a step", "step 250", "(best so far)"):
        assert shown in whole.err
