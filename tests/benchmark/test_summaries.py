"""Findings in words: what was measured, and no more."""

from typing import Any

import pytest

from flashmore.benchmark.report.summaries import crossover_sentence, share_sentence
from flashmore.benchmark.report.values import machine, setting_words


@pytest.mark.parametrize(
    ("T", "lengths", "told"),
    [
        (None, (), "needs manual and a fused backend"),
        (None, (16, 64), "is not faster up to T = 64"),
        (16, (16, 64), "is faster at every measured T, from 16 to 64"),
        (1024, (16, 1024, 4096), "is faster from T = 1,024 on, up to T = 4,096"),
    ],
)
def test_the_crossover_in_words(T: int | None, lengths: tuple[int, ...], told: str) -> None:
    assert told in crossover_sentence(T, [{"T": length} for length in lengths])


def test_a_share_says_what_it_is_of_and_what_it_limits() -> None:
    found = {
        "variants": [{"name": "flash", "ok": False}, {"name": "manual", "ok": True}],
        "attention_share": 0.5,
        "attention_share_low": 0.4,
        "attention_share_high": 0.55,
        "most_gain": 2.0,
    }
    told = share_sentence(found)
    assert told.startswith("Attention alone takes 50 % of manual's step (95 %: 40.0 – 55.0 %)")
    assert told.endswith("2.00 times as fast.")
    assert share_sentence(found | {"most_gain": None}).endswith("55.0 %).")
    assert share_sentence(found | {"attention_share": None}) == "Nothing was timed."


OLD = {"B": 2, "H": 4, "D": 8, "dtype": "float32", "causal": False}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, ()),
        ({"L": None, "H_kv": 4, "D_v": 8, "mask": "none", "dropout_p": 0.0, "passes": "both"}, ()),
        ({"H_kv": 2}, ("H_kv 2",)),
        ({"D_v": 6}, ("D_v 6",)),
        ({"L": 1}, ("1 query",)),
        ({"L": 2}, ("2 queries",)),
        ({"dropout_p": 0.25}, ("dropout 0.25",)),
        ({"mask": "padding"}, ("mask padding",)),
        ({"passes": "forward"}, ("forward alone (inference)",)),
    ],
    ids=str,
)
def test_what_an_older_record_lacks_is_the_ordinary_and_all_else_is_in_the_title(
    more: dict[str, Any], told: tuple[str, ...]
) -> None:
    plain, found = setting_words(OLD), setting_words(OLD | more)
    assert plain == ("B 2", "H 4", "D 8", "float32", "every query sees every key")
    assert tuple(word for word in found if word not in plain) == told


@pytest.mark.parametrize(
    ("device", "threads", "told"),
    [("cpu", 1, "X, 1 thread"), ("cpu", 2, "X, 2 threads"), ("cuda", 2, "X")],
)
def test_a_cpu_is_told_with_its_threads(device: str, threads: int, told: str) -> None:
    assert machine({"device": device, "device_name": "X", "threads": threads}) == told
