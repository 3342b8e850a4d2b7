"""What a record says of the machine."""

import os
import subprocess
import sys
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


def commit_of(package: Path) -> str:
    code = "from flashmore.measuring.environment import commit; print(commit())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout.strip()


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
    assert commit_of(package) == "None", "the repository is somebody else's"
    git(top, "-c", "core.fsmonitor=false", "add", "-A")
    git(top, "-c", "core.fsmonitor=false", "commit", "-qm", "with it")
    head = git(top, "rev-parse", "HEAD")[:12]
    assert commit_of(package) == head
    (package / "errors.py").write_text((package / "errors.py").read_text() + "\n")
    assert commit_of(package) == f"{head}+"
    assert not (tmp_path / "canary").exists()
