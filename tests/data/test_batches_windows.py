"""Windows stay in their part, cover it, and depend on the seed and the step alone."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from flashmore.data import batches
from flashmore.data.batches import IGNORE, Windows
from flashmore.data.long_text import cut_parts
from flashmore.data.prepared import Ids
from flashmore.errors import ConfigError, DataError

CPU = torch.device("cpu")
PARTS = ("train", "validation", "test")


def numbered(count: int) -> Ids:
    """Ids that tell their own places."""
    return np.arange(count, dtype=np.uint16)


@st.composite
def parts_of_a_text(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """(N, start, stop, T) with a window in the part."""
    context = draw(st.integers(1, 40))
    size = draw(st.integers(context + 1, 300))
    start = draw(st.integers(0, 100))
    return start + size + draw(st.integers(0, 50)), start, start + size, context


@given(parts_of_a_text(), st.integers(0, 2**63 - 1), st.integers(0, 10**9), st.integers(1, 8))
def test_a_batch_is_windows_of_its_part_and_what_follows_each_id(
    text: tuple[int, int, int, int], seed: int, step: int, batch: int
) -> None:
    count, start, stop, context = text
    windows = Windows(numbered(count), (start, stop), context, CPU)
    ids, targets = windows.at(windows.random_starts(step, batch, seed))
    assert ids.shape == targets.shape == (batch, context)
    assert ids.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, ids + 1)
    assert ids.min() >= start
    assert targets.max() < stop
    again = Windows(numbered(count), (start, stop), context, CPU)
    assert torch.equal(ids, again.at(again.random_starts(step, batch, seed))[0])


def test_steps_and_seeds_draw_different_windows_and_every_place_is_drawn() -> None:
    windows = Windows(numbered(50), (10, 40), 4, CPU)
    first = windows.random_starts(0, 8, 1).tolist()
    assert first != windows.random_starts(1, 8, 1).tolist()
    assert first != windows.random_starts(0, 8, 2).tolist()
    drawn = Counter(place for step in range(200) for place in windows.random_starts(step, 8, 1).tolist())
    assert set(drawn) == set(range(10, 36))
    assert max(drawn.values()) < 3 * min(drawn.values())


@given(parts_of_a_text())
def test_an_evaluation_predicts_every_id_but_the_first_once(text: tuple[int, int, int, int]) -> None:
    count, start, stop, context = text
    windows = Windows(numbered(count), (start, stop), context, CPU)
    ids, targets = windows.at(windows.covering)
    predicted = targets[targets != IGNORE]
    assert sorted(predicted.tolist()) == list(range(start + 1, stop))
    assert torch.equal(targets[targets != IGNORE], ids[targets != IGNORE] + 1)
    assert ids.max() < stop


def test_of_a_huge_part_the_same_windows_are_evaluated_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_EVALUATED", 100)
    first, again = (Windows(numbered(5000), (0, 5000), 10, CPU).covering for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(first) == len(set(first.tolist())) == 10
    assert (first % 10 == 0).all()
    assert first.max() > 2500 > first.min()


def test_choosing_windows_of_a_huge_part_takes_no_more_memory_than_they_do() -> None:
    count = 2**36
    ids = np.broadcast_to(np.uint16(7), (count,))  # one number, read at every place
    tracemalloc.start()
    starts = Windows(ids, (0, count), 64, CPU).covering
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(starts)) == len(starts) == batches.MOST_EVALUATED // 64
    assert 0 <= starts.min() < starts.max() < count - 1
    assert not (starts % 64).any()
    assert peak < 2**25


@given(
    count=st.integers(1, 10**12),
    shares=st.sampled_from(["80/10/10", "90/10/0", "100/0/0", "33.3/33.3/33.4", "99.9/0/0.1"]),
    context=st.integers(1, 4096),
)
def test_parts_lie_one_after_the_other_and_each_holds_a_window(count: int, shares: str, context: int) -> None:
    percent = [float(share) for share in shares.split("/")]
    smallest = min(count * share / 100 for share in percent if share)
    if smallest < context:
        with pytest.raises(DataError, match=f"{count:,} in all"):
            cut_parts(count, shares, context, "text.txt")
        return
    assume(smallest > context + 2)  # in between, rounding decides
    parts = cut_parts(count, shares, context, "text.txt")
    assert parts.train[0] == 0
    assert (parts.train[1], parts.validation[1], parts.test[1]) == (
        parts.validation[0],
        parts.test[0],
        count,
    )
    for name, share in zip(PARTS, percent, strict=True):
        start, stop = getattr(parts, name)
        assert abs(stop - start - count * share / 100) <= 2
        assert stop - start > context if share else stop == start


def test_nanogpts_split_is_nanogpts() -> None:
    parts = cut_parts(1_115_394, "90/10/0", 64, "input.txt")
    assert (parts.train, parts.validation) == ((0, int(1_115_394 * 0.9)), (1_003_854, 1_115_394))


def test_a_text_that_is_too_short_says_what_would_fit() -> None:
    with pytest.raises(DataError) as caught:
        cut_parts(100, "80/10/10", 16, "poem.txt")
    assert str(caught.value) == (
        "wanted: at least 17 characters in each part of poem.txt, for --block-size 16\n"
        " found: 100 in all: 10 for validation, 10 for test\n"
        " valid: --block-size 9 or less, a longer text, or a --split with fewer parts such as 90/10/0"
    )
    assert cut_parts(100, "80/10/10", 9, "poem.txt").test == (90, 100)


def test_shares_that_are_none_are_refused() -> None:
    for shares in ("makemore", "80/10", "0/50/50", "80/10/11"):
        with pytest.raises(ConfigError):
            cut_parts(1000, shares, 8, "text.txt")
