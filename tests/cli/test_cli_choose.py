"""`flashmore choose` and the shapes that it takes."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

Call = Callable[..., CompletedProcess[str]]
LLAMA = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, "rope_theta": 5e5}
SMALL = ("--batch-size", 1, "--length", 4, "--device", "cpu")


@pytest.mark.parametrize(
    ("changes", "H", "groups", "D"),
    [({}, 4, 2, 8), ({"head_dim": 6}, 4, 2, 6), ({"num_key_value_heads": None}, 4, 4, 8)],
    ids=str,
)
def test_the_sizes_of_a_hugging_face_model_are_the_defaults(
    changes: dict[str, Any], H: int, groups: int, D: int, document: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | changes))
    record = document("choose", "--from-config", path, *SMALL)
    assert record["problem"]["shape"] == [1, H, 4, D]
    assert record["problem"]["kv_heads"] == groups
    other = document("choose", "--from_config", path, *SMALL, "--head_dim", 16)
    assert other["problem"]["shape"] == [1, H, 4, 16]


def test_bench_attention_and_explain_take_them_too(document: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    words = ("--length", 4, "--batch-size", 1, "--backends", "manual", "--seconds", 1, "--device", "cpu")
    record = document("bench", "attention", "--from-config", path, *words)
    assert {(row["H"], row["H_kv"], row["D"]) for row in record["rows"]} == {(4, 2, 8)}
    explained = document("explain", "--from-config", path, "--device", "cpu")["call"]
    assert (explained["query"], explained["key"]) == ([32, 4, 16, 8], [32, 2, 16, 8])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{}", "no num_attention_heads"),
        ('{"num_attention_heads": 4}', "no hidden_size"),
        ('{"num_attention_heads": 0}', "num_attention_heads 0"),
        ('{"num_attention_heads": true}', "num_attention_heads True"),
        ('{"num_attention_heads": 3, "hidden_size": 32}', "hidden_size 32 and num_attention_heads 3"),
        ("[1]", "no num_attention_heads"),
        ("{", "incomplete JSON"),
    ],
    ids=str,
)
def test_a_config_without_them_is_refused_by_name(
    text: str, found: str, call: Call, refusal: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    assert found in refusal(call("choose", "--from-config", path), 2)
    assert "no-such" in refusal(call("choose", "--from-config", tmp_path / "no-such.json"), 2)


def test_decoding_is_measured_and_said(call: Call) -> None:
    words = ("--length", 1, "--source-length", 16, "--n-kv-head", 2, "--gqa", "--passes", "forward")
    done = call("choose", "--batch-size", 1, *words, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "Forward alone (inference), once" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("--mask", "bool", "--causal"),
        ("--source-length", 9, "--causal"),
        ("--causal", "--full"),
        ("--mask", "float-grad"),
        ("--mask-dims", 4),
        ("--n-kv-head", 2),
        ("--n-kv-head", 3, "--gqa"),
        ("--n-kv-head", 0, "--gqa"),
        ("--source-length", 0),
        ("--dropout", 1),
        ("--threads", -1),
        ("--threads", 10**6),
    ],
    ids=str,
)
def test_contradictory_shapes_are_refused(
    words: tuple[object, ...], call: Call, refusal: Callable[..., str]
) -> None:
    refusal(call("choose", *words), 2)
