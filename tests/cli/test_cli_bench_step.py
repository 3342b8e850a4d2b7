"""`flashmore bench step` as a user gives it: what it prints, where, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from flashmore.cli.bench import WHAT
from flashmore.measuring.result import read_record

Call = Callable[..., CompletedProcess[str]]
OPTION = re.compile(r"--[a-z][a-z.-]*")


@pytest.fixture
def small(names_file: Path) -> tuple[object, ...]:
    """The words of a comparison that takes a second or two."""
    sizes = ("--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--batch-size", 8, "--device", "cpu")
    return ("bench", "step", names_file, *sizes, "--blocks", 2)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmore.benchmark.step.bench.BLOCK_SECONDS", 1e-3)


def test_a_table_tells_times_spreads_memory_ratio_and_the_seed_experiment(
    call: Call, small: tuple[object, ...], plain: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    done = call(*small)
    assert done.returncode == 0, done.stderr
    by_hand = re.search(r"^ +manual +[\d.]+ +[\d.]+ – [\d.]+ +[\d.]+ +0\.\d\d", done.stdout, re.M)
    fused = re.search(
        r"^ +flash +[\d.]+ +[\d.]+ – [\d.]+ +\d+\.\d{3} +\d+\.\d{3} – \d+\.\d{3} +"
        r"(faster|slower|no difference|inconclusive) +[\d.]+ +0\.\d\d",
        done.stdout,
        re.M,
    )
    assert by_hand, done.stdout
    assert fused, done.stdout
    assert re.search(r"Attention alone takes \d+ % of manual's step", done.stdout)
    assert "its author's laptop: 6.77 → 5.81 ms" in done.stdout
    assert "warning: too few samples: 2 blocks" in done.stdout
    assert plain(done.stdout)
    assert "USDT" not in done.stderr


def test_json_is_the_record_and_nothing_else_and_out_is_the_same(
    small: tuple[object, ...], process: Call, tmp_path: Path
) -> None:
    done = process(*small, "--variants", "flash", "flash", "--json", "--out", tmp_path / "record.json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert read_record(tmp_path / "record.json") == record
    assert record["kind"] == "step"
    assert record["complete"]
    assert record["command"][-4:] == ["flash", "--json", "--out", str(tmp_path / "record.json")]
    assert record["environment"]["threads"] == 1
    assert [variant["name"] for variant in record["variants"]] == ["flash", "flash"]
    assert [(ratio["of"], ratio["to"]) for ratio in record["ratios"]] == [("flash", "flash")]
    assert "USDT" not in done.stderr


def test_every_context_has_its_table_and_a_smaller_batch_is_said(
    call: Call, small: tuple[object, ...]
) -> None:
    words = [word for word in small if word not in ("--batch-size", 8)]
    done = call(*words, "--lengths", 8, 160)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("One training step at ") == 2
    assert "T 160, batch 1 on" in done.stdout
    assert "note: batch 1, not 32, at context 160" in done.stderr
    kept = call(*small, "--lengths", 160)
    assert "T 160, batch 8 on" in kept.stdout
    assert "note" not in kept.stderr


def test_a_stand_in_for_flash_is_said(call: Call, small: tuple[object, ...]) -> None:
    done = call(*small, "--attention-dropout", 0.1)
    assert done.returncode == 0, done.stderr
    assert "note: sdpa in place of flash, which cannot run here: " in done.stderr
    named = call(*small, "--attention-dropout", 0.1, "--variants", "manual", "flash")
    assert named.returncode == 0, named.stderr
    assert "skipped: flash: " in named.stdout
    assert "in place of" not in named.stderr


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--attention flash", "attention backends to compare"),
        ("--model gru", "a model with attention"),
        ("--variants cudnn", "at least one variant that can be timed"),
        ("--batch-size 100000000000", "at least one variant that can be timed"),
        ("--lengths 0", "--lengths"),
        ("--lengths 100000000", "--lengths"),
        ("--blocks 0", "--blocks"),
        ("--learning-rate 1e38", "a reference to check backends against"),
        ("--n-head 3", "n_embd divisible by n_head"),
        ("--variants", "--variants to compare"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_three_parts(
    words: str, wanted: str, small: tuple[object, ...], call: Call, refusal: Callable[..., str]
) -> None:
    assert wanted in refusal(call(*small, *words.split()), 2, after_progress=True)


@pytest.mark.parametrize("words", [("--variants", "flush"), ("--lengths", "long"), ("--dtype", "int8")])
def test_a_wrong_word_is_told_by_the_parser(
    words: tuple[str, str], small: tuple[object, ...], call: Call
) -> None:
    done = call(*small, *words)
    assert done.returncode == 2
    assert words[1] in done.stderr
    assert "Traceback" not in done.stderr


def test_the_options_are_flat_and_the_defaults_those_of_makemore(call: Call) -> None:
    done = call("bench", "step", "--help")
    told = set(OPTION.findall(done.stdout))
    wanted = (
        "variants lengths blocks out json model batch-size dtype device threads dropout seed n-layer "
        "n-head n-embd"
    )
    assert {f"--{name}" for name in wanted.split()} <= told
    assert not [name for name in told if "." in name.rstrip(".")]  # a sentence may end with one
    assert "Peak learning rate. (default: 0.0005)" in done.stdout


def test_bench_tells_what_it_can_measure(call: Call, refusal: Callable[..., str]) -> None:
    assert all(f"  {what} " in call("bench", "--help").stdout for what in WHAT)
    assert call("bench").returncode == 2
    assert ", ".join(WHAT) in refusal(call("bench", "flops"), 2)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_keeps_what_was_measured_and_says_that_it_is_incomplete(
    names_file: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    sizes = ("--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--batch-size", "8", "--device", "cpu")
    out = tmp_path / "record.json"
    words = ["bench", "step", str(names_file), *sizes, "--blocks", "1000", "--json", "--out", str(out)]
    command = [sys.executable, "-m", "flashmore", *words]
    # Ctrl-C between the opening of a file and its `with` leaves it to the collector; no user is told of that.
    alone = environment | {"PYTHONWARNINGS": "error,ignore::ResourceWarning"}
    with subprocess.Popen(
        command, env=alone, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as running:
        assert running.stderr
        for line in running.stderr:
            if line == "timing in alternating blocks\n":
                break
        os.kill(running.pid, signal.SIGINT)
        stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in stderr
    assert "interrupted: " in stderr
    record: dict[str, Any] = json.loads(stdout)
    assert read_record(out) == record
    assert not record["complete"]
    assert [variant["name"] for variant in record["variants"]] == ["manual", "flash"]
    lengths = {len(variant["samples_ms"]) for variant in record["variants"]}
    assert len(lengths) == 1
    assert lengths.pop() < 1000
