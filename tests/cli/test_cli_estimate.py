"""`flashmore estimate`: the options of `train`, counts and predictions, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

Call = Callable[..., CompletedProcess[str]]
RECORDS = Path(__file__).parents[2] / "benchmarks" / "results"
GPT2 = ("--preset", "gpt2-124m", "--batch-size", 16)
HARDWARE = ("--tflops", 100, "--bandwidth-gb-s", 50, "--latency-us", 10)


def test_without_hardware_it_counts_and_predicts_nothing(document: Callable[..., Any], call: Call) -> None:
    found = document("estimate", *GPT2, "--ranks", 8)
    assert found["parameters"] == 124_373_760
    assert found["tokens"] == 16 * 1024
    assert found["memory_bytes"]["weights"] == 4 * 124_373_760
    assert found["checkpoint_bytes"] == 12 * 124_373_760
    assert found["sent_bytes"] == 2 * 7 / 8 * 4 * 124_373_760
    assert (found["hardware"], found["seconds"]) == ({}, None)
    shown = call("estimate", *GPT2, "--gpus", 8).stdout
    assert "124,373,760 parameters on 8 ranks with --parallel ddp, 16,384 tokens a step" in shown
    assert "checkpoint on rank 0" in shown
    assert "a step" in shown
    assert "--fit RECORD" in shown
    assert "predicted" not in shown.replace("predict the time", "")


def test_the_time_follows_from_the_options(document: Callable[..., Any], call: Call) -> None:
    found = document("estimate", *GPT2, "--ranks", 8, *HARDWARE, "--overlap", 0.5)
    seconds = found["seconds"]
    assert seconds["compute"] == pytest.approx(found["flop"] / 1e14)
    sending = found["sent_bytes"] / 50e9 + found["messages"] * 10e-6
    assert seconds["communication"] == pytest.approx(sending)
    assert seconds["step"] == pytest.approx(seconds["compute"] + sending - seconds["hidden"])
    assert {entry["source"] for entry in found["hardware"].values()} == {"given"}
    assert document("estimate", *GPT2, *HARDWARE)["hardware"]["overlap"] == {"value": 0, "source": "assumed"}
    shown = call("estimate", *GPT2, "--ranks", 8, *HARDWARE, "--overlap", 0.5).stdout
    assert f"{1000 * seconds['step']:,.2f} ms" in shown


def test_a_record_describes_the_hardware_and_options_come_first(document: Callable[..., Any]) -> None:
    record = RECORDS / "epyc-2-cores-scaling.json"
    fitted = json.loads(record.read_text(encoding="utf-8"))["fitted"]
    found = document("estimate", "--ranks", 2, "--fit", record, "--overlap", 0.25)["hardware"]
    assert {name: entry["value"] for name, entry in found.items()} == fitted | {"overlap": 0.25}
    assert found["overlap"]["source"] == "given"
    assert str(record) in found["tflops"]["source"]


def test_names_are_estimated_as_they_would_be_trained(document: Callable[..., Any]) -> None:
    found = document("estimate", "--ranks", 2)
    assert found["parameters"] == 204_544
    assert found["tokens"] == pytest.approx(128 * 7, rel=0.1)


def test_a_group_of_speed_ups_counts_what_it_holds(document: Callable[..., Any]) -> None:
    one, group, none = (
        document("estimate", "--ranks", 4, "--speedups", name) for name in ("compile", "exact", "none")
    )
    assert group["memory_bytes"] == one["memory_bytes"] != none["memory_bytes"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--preset", "gpt2-124m", "--gpus", 8), "valid: 8 or 16"),
        (("--gpus", 0), "a valid --ranks or --gpus"),
        (("--model", "gru"), "--model transformer"),
        (("--tflops", 100), "no --bandwidth-gb-s and no --latency-us"),
        (("--tflops", 0), "above 0"),
        (("--tflops", "nan"), "above 0"),
        (("--overlap", 2), "from 0 to 1"),
        (("--gpus", 2, "--parallel", "fsdp", "--optimizer", "muon"), "whole matrices"),
        (("--parallel", "fsdp", "--cpu-offload"), "no effect with one process"),
        (("--fit", "absent.json"), "No such file"),
    ],
)
def test_bad_input_is_refused(words: tuple[object, ...], says: str, call: Call, refusal: Any) -> None:
    assert says in refusal(call("estimate", *words), 2)


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", '{"fitted": {"tflops": 1}}']
    + [
        json.dumps({"fitted": dict.fromkeys(("tflops", "bandwidth_gb_s", "latency_us", "overlap"), value)})
        for value in (-1, 2, "1", True, None)
    ],
)
def test_another_file_is_no_record(content: str, tmp_path: Path, call: Call, refusal: Any) -> None:
    path = tmp_path / "record.json"
    path.write_text(content, encoding="utf-8")
    assert "record of benchmarks/scaling.py" in refusal(call("estimate", "--fit", path), 2)
