"""A real program of the user's, and signals that end the command that runs it: the program ends too."""

import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from forks import Forks

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs the signals of Unix")

MODEL = """\
import torch


def attend(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1), dim=-1) @ v
"""
PROGRAM = """\
import os
import subprocess
import sys
import time

fifo = os.open(sys.argv[1], os.O_WRONLY)
if sys.argv[2] == "helper":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[fifo])
os.write(fifo, b"x")
time.sleep(600)
"""
DEADLINE = 120.0


def read_until(fifo: int, wanted: bytes) -> None:
    """Read until what comes is `wanted`; nothing comes once no process has the other end any more."""
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        try:
            if os.read(fifo, 1) == wanted:
                return
        except BlockingIOError:  # somebody has it, and writes nothing
            pass
        time.sleep(0.01)
    raise AssertionError(f"{wanted!r} did not come")


@pytest.mark.parametrize(
    ("name", "started", "code"),
    [
        ("SIGTERM", "helper", 143),
        pytest.param("SIGHUP", "helper", 129, marks=pytest.mark.long),
        pytest.param(
            "SIGKILL", "alone", -9, marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux alone")
        ),
    ],
)
def test_the_program_ends_with_the_command(
    tmp_path: Path, environment: dict[str, str], forks: Forks, name: str, started: str, code: int
) -> None:
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    command = ("-m", "flashmore", "upgrade", "model.py", "--run", f"program.py fifo {started}")
    with Path(os.devnull).open() as nothing, TemporaryFile() as out:
        streams = (nothing.fileno(), out.fileno(), out.fileno())
        running = forks.start(command, environment, streams, tmp_path)
        read_until(fifo, b"x")
        os.kill(running.pid, getattr(signal, name))
        ended = running.wait()
        out.seek(0)
        told = out.read()
    assert ended == code, told
    assert b"Traceback" not in told
    read_until(fifo, b"")
    os.close(fifo)
