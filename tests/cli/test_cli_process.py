"""How a command sets up its process before PyTorch is imported."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another OpenMP library")
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
    ids=("default", "count", "policy"),
)
def test_threads_spin_briefly_unless_the_user_has_said_otherwise(given: dict[str, str], spins: str) -> None:
    mine = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    kept = {name: value for name, value in os.environ.items() if name not in mine}
    env = {**kept, **given, "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run(
        [sys.executable, "-m", "flashmore", "speedups", "--json"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
