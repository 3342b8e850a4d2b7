"""`flashmore bench attention`: the table, the record, the pictures, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from flashmore.benchmark.report.summaries import left_out
from flashmore.benchmark.report.values import digits
from flashmore.measuring.result import read_record
from forks import Forks

Call = Callable[..., CompletedProcess[str]]
TINY = (
    "bench", "attention", "--length", 16, 32, "--batch-size", 2, "--n-head", 2, "--head-dim", 8,
    "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def told(process: Call, tmp_path_factory: pytest.TempPathFactory) -> tuple[CompletedProcess[str], Path]:
    """A tiny benchmark for people, and the folder with its record and its pictures."""
    folder = tmp_path_factory.mktemp("told")
    done = process(*TINY, "--out", folder / "record.json", "--picture", folder / "attention.png")
    assert done.returncode == 0, done.stderr
    return done, folder


def test_the_table_has_a_line_for_each_length_and_backend(told: tuple[CompletedProcess[str], Path]) -> None:
    lines = told[0].stdout.splitlines()
    assert lines[1].endswith(": B 2, H 2, D 8, float32, causal; times are medians")
    cells = [line.split() for line in lines]
    found = [words[:2] for words in cells if words and words[0].isdigit()]
    assert found == [[T, backend] for T in ("16", "32") for backend in ("manual", "math", "flash")]
    refused = [line for line in lines if line.startswith("skipped: ")]
    assert refused[0].startswith("skipped: efficient and cudnn: PyTorch has no CPU kernel of this name")
    assert [line.split()[1] for line in refused[1:]] == ["flex:", "varlen:"]
    verdicts = [line for line in lines if line.startswith("Fused attention ")]
    assert len(verdicts) == 1


def test_the_record_and_the_picture_are_written(told: tuple[CompletedProcess[str], Path]) -> None:
    _, folder = told
    record = read_record(folder / "record.json")
    assert record["kind"] == "attention"
    assert record["complete"]
    assert {row["T"] for row in record["rows"]} == {16, 32}
    assert (folder / "attention.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_progress_is_on_stderr(told: tuple[CompletedProcess[str], Path]) -> None:
    done, folder = told
    assert done.stderr.splitlines() == [
        "T 16 (B 2, H 2, D 8, float32)",
        "T 32 (B 2, H 2, D 8, float32)",
        f"record: {folder / 'record.json'}",
        f"picture: {folder / 'attention.png'}",
    ]


def test_json_is_the_record_and_nothing_else(process: Call, tmp_path: Path) -> None:
    more = ("--json", "--causal", "--full", "--threads", "1", "--out", tmp_path / "record.json")
    done = process(*TINY, *more)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == read_record(tmp_path / "record.json")
    record = json.loads(done.stdout)
    assert record["command"][1:] == [str(word) for word in (*TINY, *more)]
    assert record["environment"]["threads"] == 1
    assert [found["causal"] for found in record["crossovers"]] == [True, False]


def test_what_exceeds_the_memory_is_named_and_the_rest_is_shown(call: Call) -> None:
    done = call(
        "bench", "attention", "--length", 16, 64, "--batch-size", 8, "--n-head", 4, "--head-dim", 4,
        "--device", "cpu", "--memory", 0.001,
    )  # fmt: skip
    assert done.returncode == 0
    (line,) = (line for line in done.stdout.splitlines() if "GiB, and the limit is" in line)
    assert line.startswith("skipped: manual at T = 64")
    assert "math at T = 64" in done.stdout
    assert (
        "Fused attention " in done.stdout
    )  # flash ran at both, and was compared at the one that manual took


def test_more_memory_than_there_is_is_no_crash(call: Call) -> None:
    done = call("bench", "attention", "--length", 2**20, "--device", "cpu", "--seconds", 5)
    assert done.returncode == 0
    assert "it would need" in done.stdout
    assert "the check against float64 would need" in done.stdout
    assert "No crossover: this needs manual and a fused backend at the same T." in done.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        ("--length", 16, 0),
        ("--batch-size", -3),
        ("--n-head", 10**9),
        ("--head-dim", 0),
        ("--seconds", 0),
        ("--memory", 0),
        ("--backends",),
        ("--picture", "attention.txt"),
        ("--picture", "attention"),
    ],
    ids=str,
)
def test_sizes_and_names_that_cannot_be_are_refused_before_anything_runs(
    call: Call, refusal: Callable[..., str], wrong: tuple[object, ...]
) -> None:
    assert str(wrong[0]) in refusal(call("bench", "attention", *wrong), 2)


def test_a_device_that_is_not_here_is_refused(call: Call, refusal: Callable[..., str]) -> None:
    import torch

    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    assert "--device" in refusal(call(*TINY[:-1], absent), 2)


def test_ctrl_c_keeps_the_shapes_that_were_finished(
    environment: dict[str, str], forks: Forks, tmp_path: Path
) -> None:
    words = [*TINY[:2], "--length", 16, 64, 256, 512, 1024, *TINY[5:], "--json"]
    ours, theirs = os.pipe()
    with (tmp_path / "record.json").open("wb") as out, os.fdopen(ours, encoding="utf-8") as told:
        running = forks.start(("-m", "flashmore", *words), environment, (None, out.fileno(), theirs))
        os.close(theirs)
        said = ""
        while not said.startswith("T 256 "):
            said = told.readline()
            assert said, "it ended before it could be interrupted"
        os.kill(running.pid, signal.SIGINT)
        err = told.read()
    assert running.wait() == 130
    assert err.endswith("interrupted: the measurements so far are kept\n")
    assert "Traceback" not in err
    record = read_record(tmp_path / "record.json")
    assert not record["complete"]
    assert {16, 64} <= {row["T"] for row in record["rows"] if row["ok"]}
    assert 1024 not in {row["T"] for row in record["rows"]}


def test_help_answers_without_torch() -> None:
    code = "import sys, flashmore.cli.bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.000123, "0.000123"), (0.0623, "0.0623"), (1.234, "1.23"), (56.78, "56.8"), (123.4, "123"),
     (4567.8, "4,568"), (0.0, "0")],
)  # fmt: skip
def test_numbers_have_three_digits_and_no_exponent(value: float, told: str) -> None:
    assert digits(value) == told


def test_what_shares_a_reason_shares_a_line() -> None:
    def row(backend: str, T: int, why: str | None) -> dict[str, Any]:
        return {"backend": backend, "T": T, "pass": "both", "ok": why is None, "why_not": why}

    rows = [
        row("manual", 16, None), row("manual", 1024, "too large"), row("math", 16, None),
        row("math", 1024, "too large"), row("cudnn", 16, "no kernel"), row("cudnn", 1024, "no kernel"),
    ]  # fmt: skip
    assert left_out(rows) == [
        "skipped: manual at T = 1,024 and math at T = 1,024: too large",
        "skipped: cudnn: no kernel",
    ]
