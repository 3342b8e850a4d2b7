"""No item in two parts, none lost; and makemore's own split, leaks and all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flashmore.data.items import Split, Words, read_words, split_words
from flashmore.errors import ConfigError, DataError

SETS_OF_ITEMS = st.lists(st.text("abcdé", min_size=1, max_size=6), min_size=1, max_size=80)
SHARES = st.tuples(st.integers(1, 100), st.integers(0, 100)).filter(lambda s: sum(s) <= 100)
SEEDS = st.integers(0, 2**70)


def as_words(lines: list[str]) -> Words:
    items = tuple(dict.fromkeys(lines))
    return Words(tuple(lines), items, "a list")


def numbered(count: int) -> Words:
    return as_words([f"item {number}" for number in range(count)])


def sizes(split: Split) -> tuple[int, int, int]:
    return len(split.train), len(split.validation), len(split.test)


@given(SETS_OF_ITEMS, SHARES, SEEDS)
@settings(deadline=None, max_examples=300)
def test_no_leaks_and_nothing_lost(lines: list[str], shares: tuple[int, int], seed: int) -> None:
    words = as_words(lines)
    percentages = (*shares, 100 - sum(shares))
    how = "/".join(map(str, percentages))
    wanted = [share > 0 for share in percentages]
    if len(words.items) < sum(wanted):
        with pytest.raises(DataError):
            split_words(words, how, seed)
        return
    split = split_words(words, how, seed)
    together = [*split.train, *split.validation, *split.test]
    assert sorted(together) == sorted(words.items)
    assert [size > 0 for size in sizes(split)] == wanted
    assert split.leak_share is None


@given(SETS_OF_ITEMS, SEEDS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_and_duplicates_of_the_file_have_no_say(lines: list[str], seed: int, random: object) -> None:
    assume(len(set(lines)) >= 3)
    shuffled = [*lines, *lines[:3]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split_words(as_words(lines), seed=seed) == split_words(as_words(shuffled), seed=seed)


def test_seed_decides() -> None:
    words = numbered(50)
    assert split_words(words, seed=1) == split_words(words, seed=1)
    assert set(split_words(words, seed=1).test) != set(split_words(words, seed=2).test)


def test_default_split_stays_the_same_over_versions() -> None:
    split = split_words(as_words(list("jihgfedcba")))
    assert split == Split(tuple("fichdjae"), ("b",), ("g",), None)


@pytest.mark.parametrize(
    ("count", "how", "expected"),
    [
        (29_910, "80/10/10", (23_928, 2_991, 2_991)),
        (100, "80/10/10", (80, 10, 10)),
        (20, "80/10/10", (16, 2, 2)),
        (4, "80/10/10", (2, 1, 1)),
        (3, "80/10/10", (1, 1, 1)),
        (3, "1/9/90", (1, 1, 1)),
        (9, "1/0/99", (1, 0, 8)),
        (10, "1/98/1", (1, 8, 1)),
        (1, "100/0/0", (1, 0, 0)),
        (2, "50/0/50", (1, 0, 1)),
        (1000, "98.5/1/0.5", (985, 10, 5)),
    ],
)
def test_sizes_of_the_parts(count: int, how: str, expected: tuple[int, int, int]) -> None:
    assert sizes(split_words(numbered(count), how)) == expected


@pytest.mark.parametrize(
    ("count", "how", "needed"), [(1, "80/10/10", 3), (2, "80/10/10", 3), (1, "90/10/0", 2), (1, "50/0/50", 2)]
)
def test_too_few_items_are_refused_with_the_number_needed(count: int, how: str, needed: int) -> None:
    words = as_words([f"item {number % count}" for number in range(30)])
    with pytest.raises(DataError) as caught:
        split_words(words, how)
    assert f"at least {needed} different items" in caught.value.wanted
    assert caught.value.found.startswith(f"{count} different item")
    assert "100/0/0" in caught.value.valid


@pytest.mark.parametrize(
    "how",
    [
        *("", "80", "80/20", "80/10/10/0", "80 / 10 / 10", "80/10/10\n", "a/b/c", "Makemore"),
        *("80/10/11", "80/10/9", "33.3/33.3/33.3", "0/50/50", "110/-10/0"),
        *("nan/10/10", "inf/0/0", "1e2/0/0", "0100/0/0", "٨٠/١٠/١٠"),
    ],
)
def test_shares_that_are_none(how: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_words(numbered(100), how)
    assert caught.value.found == repr(how)
    assert "80/10/10" in caught.value.valid


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed"):
        split_words(numbered(100), seed=-1)


def test_novelty_names_the_first_part() -> None:
    split = Split(("ana", "bo"), ("cy",), ("bo", "di"), 0.5)
    assert [split.novelty(text) for text in ("ana", "bo", "cy", "di", "ed", "")] == [
        "train",
        "train",
        "validation",
        "test",
        "new",
        "new",
    ]


def independent_makemore(lines: list[str]) -> tuple[list[str], list[str]]:
    torch.manual_seed(3407)
    order = torch.randperm(len(lines))
    held_out = min(1000, int(len(lines) * 0.1))
    learned = [lines[i] for i in order[: len(lines) - held_out]]
    return learned, [lines[i] for i in order[len(lines) - held_out :]]


@pytest.mark.parametrize("count", [10, 19, 20, 999, 10_009, 10_010, 20_000])
def test_makemore_split_is_makemores(count: int) -> None:
    lines = [f"item {number * number % 4001}" for number in range(count)]
    with torch.random.fork_rng():
        train, test = independent_makemore(lines)
    state = torch.get_rng_state()
    split = split_words(as_words(lines), "makemore", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert (list(split.train), split.validation, list(split.test)) == (train, (), test)
    assert split.leak_share == len([item for item in test if item in set(train)]) / len(test)


@pytest.mark.parametrize("count", [1, 9])
def test_makemore_split_of_too_few_lines_is_refused(count: int) -> None:
    with pytest.raises(DataError, match="at least 10 lines") as caught:
        split_words(numbered(count), "makemore")
    assert caught.value.found.startswith(f"{count} line")


@pytest.mark.comparison
def test_leak_share_of_makemores_own_names() -> None:
    folder = os.environ.get("FLASHMORE_COMPARISON_DATA")
    if folder is None:
        pytest.skip("FLASHMORE_COMPARISON_DATA, which names the folder with makemore-names.txt, is not set")
    words = read_words(Path(folder, "makemore-names.txt"))
    assert (len(words.lines), len(words.items)) == (32_033, 29_494)
    split = split_words(words, "makemore")
    assert sizes(split) == (31_033, 0, 1_000)
    assert split.leak_share == pytest.approx(0.153)


def test_shares_need_no_torch() -> None:
    code = "import sys, flashmore.data.items; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
