"""How a command sets up its process before PyTorch is imported."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashmore.cli.process import _wants_cpu

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SPINS = """
import atexit, os
from flashmore.cli.process import entry
atexit.register(lambda: print(os.environ.get("GOMP_SPINCOUNT")))
entry()
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have another OpenMP library")


@pytest.fixture
def busy() -> Iterator[None]:
    """A program that always wants a CPU."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        yield
        loop.kill()


@pytest.fixture
def kept() -> dict[str, str]:
    """The environment without what tells threads how long to spin."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


@linux
@pytest.mark.usefixtures("busy")
def test_threads_spin_briefly_on_a_busy_machine(kept: dict[str, str]) -> None:
    command = [sys.executable, "-m", "flashmore", "score", "nowhere", "anna"]  # which imports PyTorch
    env = {**kept, "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "GOMP_SPINCOUNT = '100'" in done.stderr


@linux
def test_a_program_with_a_low_priority_makes_no_machine_busy() -> None:
    loop = [sys.executable, "-c", "while True: pass"]
    with (
        subprocess.Popen(loop) as usual,
        subprocess.Popen(loop, preexec_fn=lambda: os.nice(1)) as low,
    ):
        try:
            while not _wants_cpu(Path(f"/proc/{usual.pid}")):
                assert usual.poll() is None
            assert not _wants_cpu(Path(f"/proc/{low.pid}"))
        finally:
            usual.kill()
            low.kill()


@linux
@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize(
    ("given", "spins"),
    [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")],
    ids=("count", "policy"),
)
def test_a_user_who_has_said_how_long_threads_spin_is_obeyed(
    given: dict[str, str], spins: str, kept: dict[str, str]
) -> None:
    command = [sys.executable, "-c", SPINS, "look", "nowhere.txt"]  # which needs no PyTorch
    done = subprocess.run(command, env={**kept, **given}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == f"{spins}\n"
