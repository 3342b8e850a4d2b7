"""How a command sets up its process before PyTorch is imported."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.fixture
def busy() -> Iterator[None]:
    """A program that always wants a CPU."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        yield
        loop.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another OpenMP library")
@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "100"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
    ids=("default", "count", "policy"),
)
def test_threads_spin_briefly_on_a_busy_machine_unless_the_user_has_said_otherwise(
    given: dict[str, str], spins: str
) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    env = {**kept, **given, "OMP_DISPLAY_ENV": "verbose"}
    command = [sys.executable, "-m", "flashmore", "speedups", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
