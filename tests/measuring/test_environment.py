"""What a record says of the machine."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree

import msgspec
import torch

import flashmore
from flashmore.measuring.environment import busy_cpu_seconds, environment
from flashmore.measuring.record import Environment

BURN = "import time\nwhile time.process_time() < 0.6: pass"


def test_every_field_that_a_record_requires_is_there_and_no_other() -> None:
    found = environment(torch.device("cpu"))
    msgspec.convert(found, Environment)
    assert set(found) == set(Environment.__struct_fields__) - {"fuse_attention", "ranks"}
    assert found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__
    assert found["device_name"] == found["cpu_name"] != ""


def test_what_another_process_used_is_told() -> None:
    first = busy_cpu_seconds()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    second = busy_cpu_seconds()
    assert second - first >= 0.4


@contextmanager
def commits_of(package: Path) -> Iterator[Callable[[], str]]:
    """What a process with this package says of its commit, whenever it is asked."""
    code = "from flashmore.measuring.environment import commit\nwhile input(): print(commit(), flush=True)"
    environment = os.environ | {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        asked, told = process.stdin, process.stdout

        def ask() -> str:
            asked.write("?\n")
            asked.flush()
            return told.readline().strip()

        yield ask
        asked.write("\n")
    assert process.returncode == 0


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.strip()


def test_the_commit_is_that_of_our_own_checkout_and_is_told_without_running_git(tmp_path: Path) -> None:
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/canary\n")
    trap.chmod(0o755)
    top = tmp_path / "checkout"
    top.mkdir()
    (top / "other.py").write_text("x = 1\n")
    git(top, "init", "-q")
    git(top, "config", "core.fsmonitor", str(trap))
    git(top, "-c", "core.fsmonitor=false", "add", "-A")
    git(top, "-c", "core.fsmonitor=false", "commit", "-qm", "without the package")
    (tmp_path / "canary").unlink(missing_ok=True)
    package = top / "flashmore"
    copytree(Path(flashmore.__file__).parent, package, ignore=lambda *_: {"__pycache__"})
    with commits_of(package) as commit:
        assert commit() == "None", "the repository is somebody else's"
        git(top, "-c", "core.fsmonitor=false", "add", "-A")
        git(top, "-c", "core.fsmonitor=false", "commit", "-qm", "with it")
        head = git(top, "rev-parse", "HEAD")[:12]
        assert commit() == head
        (package / "errors.py").write_text((package / "errors.py").read_text() + "\n")
        assert commit() == f"{head}+"
    assert not (tmp_path / "canary").exists()
