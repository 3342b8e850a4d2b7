import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flashmore.errors import RunError, StorageError
from flashmore.runs import Run, locked

MakeRun = Callable[..., Run]

HOLD = """
import sys, time
from pathlib import Path
from flashmore.runs import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(path: Path, environment: dict[str, str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_the_run_until_that_one_dies(
    run: Run, environment: dict[str, str]
) -> None:
    with hold(run.path, environment) as process:
        try:
            with pytest.raises(RunError, match=f"process {process.pid} on ") as caught, locked(run.path):
                pass
        finally:
            process.kill()
    assert caught.value.exit_code == 2
    with locked(run.path):
        assert f"process {os.getpid()} on ".encode() in (run.path / "run.lock").read_bytes()


def test_a_run_is_locked_against_its_own_process_too(run: Run) -> None:
    with locked(run.path), pytest.raises(RunError, match=f"process {os.getpid()} on"), locked(run.path):
        pass
    with locked(run.path):
        pass


def test_a_folder_that_stays_empty_goes_away_with_its_parents(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / "run.lock").exists()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass
    assert tmp_path.exists(), "what was there before stays"


def test_a_folder_that_holds_something_stays(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "note").write_text("mine")
    assert sorted(entry.name for entry in (tmp_path / "run").iterdir()) == ["note", "run.lock"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="file"), locked(tmp_path / "file" / "run"):
        pass
