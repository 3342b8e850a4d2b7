"""`flashmore bench check`: what is slower than a baseline, and what cannot be compared with it."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from flashmore.measuring.result import read_record
from flashmore.training.resolve import resolve_device

GOLDEN = Path(__file__).parents[1] / "golden" / "records"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
STEP = RESULTS / "epyc-2-cores-step-contexts.json"

Call = Callable[..., CompletedProcess[str]]
Record = dict[str, Any]


def written(record: Record, path: Path) -> Path:
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def slowed(record: Record, factor: float) -> Record:
    """The record with the samples of `flash` scaled."""
    for found in (record, *record["further_contexts"]):
        for one in found["variants"]:
            if one["name"] == "flash":
                one["samples_ms"] = [[factor * ms for ms in block] for block in one["samples_ms"]]
    return record


@pytest.mark.parametrize(
    ("factor", "more", "code"),
    [(1.0, (), 0), (1.5, (), 1), (0.5, (), 0), (1.02, (), 0), (1.2, ("--equivalence", 30), 0)],
    ids=str,
)
def test_it_ends_with_1_only_where_something_is_slower(
    factor: float, more: tuple[object, ...], code: int, call: Call, tmp_path: Path
) -> None:
    other = written(slowed(read_record(STEP), factor), tmp_path / "now.json")
    done = call("bench", "check", "--baseline", STEP, other, *more)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("Slower than the baseline: 2: flash at T 16," in done.stdout) == bool(code)
    assert ("Nothing is slower." in done.stdout) == (not code)


@pytest.mark.parametrize("name", ["attention-cpu", "choose-cpu", "step-cpu"])
def test_every_kind_can_be_compared(name: str, call: Call) -> None:
    path = GOLDEN / f"{name}.json"
    done = call("bench", "check", "--baseline", path, path)
    assert done.returncode == 0, done.stderr
    assert "Nothing is slower." in done.stdout


def test_an_ablation_too(call: Call) -> None:
    path = RESULTS / "epyc-2-cores-ablation.json"
    assert call("bench", "check", "--baseline", path, path).returncode == 0


@pytest.mark.parametrize(
    ("where", "change", "found"),
    [
        ("environment", {"device_name": "another"}, "a different device_name: another instead of"),
        ("environment", {"threads": 99}, "a different threads: 99 instead of"),
        ("config", {"n_embd": 8}, "a different n_embd: 8 instead of 64"),
        (None, {"batch": 99}, "a different (T, batch): "),
    ],
    ids=str,
)
def test_other_machines_and_settings_are_refused(
    where: str | None,
    change: Record,
    found: str,
    call: Call,
    refusal: Callable[..., str],
    tmp_path: Path,
) -> None:
    record = read_record(STEP)
    (record if where is None else record[where]).update(change)
    other = written(record, tmp_path / "now.json")
    assert found in refusal(call("bench", "check", "--baseline", STEP, other), 2)


def test_empty_blocks_are_no_samples(call: Call, tmp_path: Path) -> None:
    record = read_record(STEP)
    record["variants"][0]["samples_ms"][1:] = [[]] * 7
    other = written(record, tmp_path / "now.json")
    assert "1: manual at T 16 (" in call("bench", "check", "--baseline", STEP, other).stdout


def test_another_kind_is_refused(call: Call, refusal: Callable[..., str]) -> None:
    one, other = GOLDEN / "step-cpu.json", GOLDEN / "choose-cpu.json"
    assert "a different kind" in refusal(call("bench", "check", "--baseline", one, other), 2)


def test_it_measures_again_by_the_command_of_the_baseline_and_writes_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("choose", "--length", 8, "--batch-size", 2, "--device", "cpu", "--out", "first.json")
    monkeypatch.setattr("sys.argv", ["flashmore", *map(str, words)])
    assert call(*words).returncode == 0
    before = (tmp_path / "first.json").read_bytes()
    done = call("bench", "check", "--baseline", "first.json")
    assert done.returncode in (0, 1), done.stderr  # whatever the time
    assert "manual" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["first.json"]
    assert (tmp_path / "first.json").read_bytes() == before


def test_a_baseline_of_no_command_and_of_another_machine_is_refused_before_measuring(
    call: Call, refusal: Callable[..., str], tmp_path: Path
) -> None:
    from flashmore.measuring.environment import environment

    record = read_record(STEP)
    record["environment"]["device_name"] = "Invented CPU"
    elsewhere = written(record, tmp_path / "elsewhere.json")
    assert "a different device_name" in refusal(call("bench", "check", "--baseline", elsewhere), 2)
    record["environment"] = environment(resolve_device("cpu"))
    for command in (["python", "train.py"], ["flashmore", "bench"], ["flashmore", "bench", "check"], []):
        unknown = written(record | {"command": command}, tmp_path / "unknown.json")
        assert " ".join(command) in refusal(call("bench", "check", "--baseline", unknown), 2)


def test_an_equivalence_that_is_no_percentage_is_refused(call: Call, refusal: Callable[..., str]) -> None:
    refusal(call("bench", "check", "--baseline", STEP, "--equivalence", 0), 2)
    refusal(call("bench", "step", "--equivalence", 100), 2)
