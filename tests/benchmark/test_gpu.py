"""benchmarks/gpu.py: all parts in one folder, whatever becomes of one of them, the rest in a second call."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import gpu
from flashmore.errors import UsageError
from flashmore.measuring.result import read_record
from forks import Forks

SCRIPT = Path(gpu.__file__)
SECONDS = 300.0
"""A process that takes longer hangs, however loaded the machine is."""


def command(*words: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, words)]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, timeout=SECONDS)


def parts_of(folder: Path) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads((folder / "parts.json").read_text())["parts"]
    return parts


def part_of(process: subprocess.Popen[str], script: str) -> psutil.Process:
    """The process of a part, as soon as there is one."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, f"it ended before {script} began"
        for child in psutil.Process(process.pid).children():
            try:
                if any(word.endswith(script) for word in child.cmdline()):
                    return child
            except psutil.Error:  # it has just ended, or is not yet another program
                continue
        time.sleep(0.02)
    raise TimeoutError


@pytest.mark.long
def test_a_killed_and_a_failing_part_stop_no_other_and_a_second_call_completes_the_folder(
    tmp_path: Path,
) -> None:
    checkout, out = tmp_path / "makemore", tmp_path / "records"
    checkout.mkdir()
    (checkout / "makemore.py").write_text("raise SystemExit('it broke')")
    (checkout / "names.txt").write_text("".join(f"{a}{b}\n" for a in "bdklmn" for b in "aeiou"))
    words = ("--out", out, "--smoke-test", "--minutes", "30")
    with subprocess.Popen(
        command(*words, "--makemore", checkout), stdout=subprocess.PIPE, text=True
    ) as process:
        part_of(process, "gpu_kernels.py").kill()
        printed, _ = process.communicate(timeout=SECONDS)
    parts = parts_of(out)
    assert process.returncode == 1, printed
    assert (parts["explain"]["status"], parts["explain"]["reason"]) == ("failed", "SIGKILL ended it")
    assert parts["makemore"]["status"] == "failed"
    assert "it broke" in parts["makemore"]["reason"]
    assert parts["nanogpt"]["status"] == "skipped"
    assert "bfloat16" in parts["nanogpt"]["reason"]
    done = {name for name, part in parts.items() if part["status"] == "complete"}
    assert done == {"tests", "train", "generation", "step", "attention", "ablation"}, parts
    assert not (out / "explain.json").exists()
    for name in gpu.REPORTED:
        assert read_record(out / f"{name}.json")["complete"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(f"{name}.json" in page for name in gpu.REPORTED)
    before = {name: (out / f"{name}.json").read_bytes() for name in done}

    again = run(*words)
    assert again.returncode == 0, again.stderr
    assert all(f"{name}: complete already" in again.stdout for name in done)
    assert {name: (out / f"{name}.json").read_bytes() for name in done} == before
    after = parts_of(out)
    assert (after["explain"]["status"], after["makemore"]["status"]) == ("complete", "skipped")
    explained = json.loads((out / "explain.json").read_text())
    assert explained["different"] == 0
    assert {"flash", "math"} <= {call["ran"] for call in explained["calls"]}
    assert json.loads((out / "generation.json").read_text())["draws"] == 50
    assert json.loads((out / "tests.json").read_text())["failed"] == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_there_is_one_message_and_no_folder(tmp_path: Path, forks: Forks) -> None:
    done = forks.run((SCRIPT, "--out", tmp_path / "records"), os.environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(":")[0].strip() for line in done.stderr.splitlines()] == [
        "wanted",
        "found",
        "valid",
    ]
    assert "sees only cpu" in done.stderr
    assert "--smoke-test" in done.stderr
    assert not (tmp_path / "records").exists()


@pytest.fixture
def options(tmp_path: Path) -> gpu.Options:
    return gpu.Options(out=tmp_path, smoke_test=True)


def test_a_folder_of_another_machine_or_purpose_is_refused(
    options: gpu.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = subprocess.run([sys.executable, *gpu.FLASHMORE, "env", "--json"], capture_output=True, check=True)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: told)  # the same for both refusals
    (options.out / "notes.txt").write_text("theirs")
    with pytest.raises(UsageError, match="it has other files"):
        gpu._environment(options)
    (options.out / "environment.json").write_text('{"environment": {"torch": "1.0"}}')
    with pytest.raises(UsageError, match=r"another .*torch"):
        gpu._environment(options)
    (options.out / "parts.json").write_text('{"smoke_test": false, "parts": {}}')
    with pytest.raises(UsageError, match="a folder of a smoke test"):
        gpu._told(options)


INTERRUPTED = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
try:
    time.sleep(600)
except KeyboardInterrupt:
    print('{"complete": false, "rounds": 3}')
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
)


def test_a_part_that_is_late_keeps_what_it_measured_and_leaves_no_process(tmp_path: Path) -> None:
    part = gpu.Part("late", 1, ("-c", INTERRUPTED, str(tmp_path / "pid")))
    told = gpu._run(part, tmp_path, 5.0)
    assert (told["status"], told["reason"]) == ("incomplete", "its 5 s were over; more time: --minutes")
    assert json.loads((tmp_path / "late.json").read_text()) == {"complete": False, "rounds": 3}
    child = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_part_that_ignores_the_interruption_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GRACE_SECONDS", 1.0)
    told = gpu._run(gpu.Part("late", 1, ("-c", STUBBORN)), tmp_path, 2.0)
    assert told["status"] == "failed"
    assert not (tmp_path / "late.json").exists()


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("print('{}')", "complete", ""),
        ("print('{}'); raise SystemExit('3 tests failed')", "failed", "3 tests failed"),
        ("print('half')", "failed", "it printed no record"),
        ("raise MemoryError('CUDA out of memory. Tried to allocate 2 GiB')", "failed", "too little memory: "),
        (
            "raise SystemExit('step 1\\nwanted: a GPU\\n found: none\\n valid: one')",
            "failed",
            "wanted: a GPU; found: none; valid: one",
        ),
    ],
)
def test_the_status_of_a_part_and_its_reason(tmp_path: Path, code: str, status: str, reason: str) -> None:
    told = gpu._run(gpu.Part("part", 1, ("-c", code)), tmp_path, 60.0)
    assert told["status"] == status
    assert told["reason"].startswith(reason)
    assert bool(told["reason"]) == (status == "failed")


def test_a_card_without_bfloat16_and_missing_checkouts_are_named(tmp_path: Path) -> None:
    def why_not(capability: list[int], **options: Any) -> dict[str, str]:
        made = gpu.parts(gpu.Options(out=tmp_path, **options), capability)
        return {part.name: part.why_not for part in made if part.why_not}

    both = {"makemore": tmp_path, "nanogpt": tmp_path}
    assert why_not([9, 0], **both) == {}
    assert set(why_not([9, 0])) == {"makemore", "nanogpt"}
    assert "bfloat16" in why_not([7, 5], **both)["nanogpt"]
    step = next(part for part in gpu.parts(gpu.Options(out=tmp_path), [7, 5]) if part.name == "step")
    assert "float16" in step.words


def test_ctrl_c_ends_the_part_as_well(tmp_path: Path) -> None:
    out = tmp_path / "records"
    with subprocess.Popen(
        command("--out", out, "--smoke-test"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        part = part_of(process, "gpu_tests.py")
        os.kill(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert told == "Interrupted by the user. The same command again completes the folder.\n"
    assert not part.is_running()
