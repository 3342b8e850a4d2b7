"""Sequences are the items shifted by one; an epoch is every item once."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flashmore.data import batches
from flashmore.data.batches import IGNORE, BatchOrder, MixedOrder, encode_items
from flashmore.data.vocabulary import EOS, Vocabulary
from flashmore.errors import ConfigError, DataError

ITEMS = st.lists(st.text(st.characters(), min_size=1, max_size=9), max_size=12)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 100))


@given(ITEMS, st.integers(0, 3))
@settings(deadline=None)
def test_targets_are_the_ids_shifted_and_ignore_is_padding(items: list[str], room: int) -> None:
    vocabulary = Vocabulary.from_items(items)
    context = max(map(len, items), default=0) + 1 + room
    sequences = encode_items(items, vocabulary, context, "cpu")
    for tensor in (sequences.ids, sequences.targets):
        assert (tensor.shape, tensor.dtype) == ((len(items), context), torch.int16)
    assert sequences.lengths.dtype == torch.int64
    for row, item in enumerate(items):
        characters = vocabulary.encode(item)
        padding = context - len(item) - 1
        assert sequences.ids[row].tolist() == [EOS, *characters, *[0] * padding]
        assert sequences.targets[row].tolist() == [*characters, EOS, *[IGNORE] * padding]
        assert sequences.lengths[row] == len(item) + 1


def test_item_longer_than_the_context_is_refused() -> None:
    vocabulary = Vocabulary.from_items(["abcd"])
    assert encode_items(["abc"], vocabulary, 4, "cpu").ids.tolist() == [[0, 1, 2, 3]]
    with pytest.raises(DataError, match="at most 3 characters"):
        encode_items(["a", "abcd"], vocabulary, 4, "cpu")


@pytest.mark.parametrize("unknown", ["é", "A", "{", "\U0010ffff", "\ud800"])
def test_unknown_characters_are_named(unknown: str) -> None:
    vocabulary = Vocabulary.from_items(["bd"])
    for item in (f"b{unknown}", "bac"):
        with pytest.raises(DataError) as caught:
            encode_items(["d", item], vocabulary, 9, "cpu")
        assert repr(item[1]) in caught.value.found
        assert caught.value.valid == "b d"


@given(SIZES, st.integers(0, 2**70), st.integers(0, 5))
@settings(deadline=None)
def test_every_item_once_an_epoch(sizes: tuple[int, int], seed: int, epoch: int) -> None:
    count, batch = sizes
    order = BatchOrder(count, batch, seed)
    steps = range(epoch * count // batch, (epoch + 1) * count // batch + 1)
    indices = torch.cat([order.indices(step) for step in steps])
    assert (indices.dtype, len(indices)) == (torch.int64, batch * len(steps))
    start = epoch * count - steps[0] * batch
    assert sorted(indices[start : start + count].tolist()) == list(range(count))


@given(SIZES, st.integers(0, 2**70), st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
@settings(deadline=None)
def test_batch_depends_on_seed_and_step_alone(sizes: tuple[int, int], seed: int, steps: list[int]) -> None:
    used = BatchOrder(*sizes, seed)
    for step in [*steps, *reversed(steps), steps[0] + 1]:
        batch = used.indices(step)
        assert torch.equal(batch, BatchOrder(*sizes, seed).indices(step))
        batch.zero_()  # what a caller does with its batch must not come back in the next one
    assert torch.equal(used.indices(steps[0]), BatchOrder(*sizes, seed).indices(steps[0]))


@given(st.integers(1, 64), st.integers(0, 1000), st.integers(0, 1000))
@settings(deadline=None)
def test_epochs_and_seeds_differ(batch: int, seed: int, other: int) -> None:
    count = 30  # 30! orders: two alike would be no accident
    order = BatchOrder(count, batch, seed)
    indices = torch.cat([order.indices(step) for step in range(3 * count // batch + 1)])[: 3 * count]
    epochs = {tuple(epoch.tolist()) for epoch in indices.view(3, count)}
    assert len(epochs) == 3
    assume(seed != other)
    different = BatchOrder(count, count, other)
    assert epochs.isdisjoint(tuple(different.indices(step).tolist()) for step in range(3))


def test_order_stays_the_same_over_versions() -> None:
    order = BatchOrder(5, 3, 3407)
    assert [order.indices(step).tolist() for step in range(4)] == [[3, 4, 0], [1, 2, 3], [1, 0, 4], [2, 0, 3]]
    assert BatchOrder(2, 5, 3407).indices(7).tolist() == [1, 0, 1, 0, 1]


@pytest.mark.parametrize("wrong", [(0, 32, 1), (10, 0, 1), (10, 32, -1)])
def test_impossible_sizes_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError):
        BatchOrder(*wrong)


def test_take_gathers_rows_in_the_order_asked_for() -> None:
    vocabulary = Vocabulary.from_items(["ab", "c"])
    sequences = encode_items(["ab", "c"], vocabulary, 4, "cpu")
    ids, targets = sequences.take(torch.tensor([1, 0, 1]))
    assert ids.tolist() == [[0, 3, 0, 0], [0, 1, 2, 0], [0, 3, 0, 0]]
    assert targets.tolist() == [[3, 0, -1, -1], [1, 2, 0, -1], [3, 0, -1, -1]]
    assert (ids.dtype, targets.dtype) == (torch.int64, torch.int64)


def test_ids_of_a_large_vocabulary_and_of_many_items_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_AT_ONCE", 7)
    characters = [chr(point) for point in range(0x20000, 0x20000 + 2**15)]
    vocabulary = Vocabulary(tuple(characters))
    sequences = encode_items(characters, vocabulary, 2, "cpu")
    assert sequences.ids.dtype == torch.int32
    assert sequences.targets[:, 0].tolist() == [*range(1, 2**15 + 1)]


@pytest.mark.cuda
def test_sequences_live_on_the_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    sequences = encode_items(["ab"], Vocabulary.from_items(["ab"]), 4, "cuda")
    batch = sequences.take(BatchOrder(1, 2, 0).indices(0))
    assert [tensor.device.type for tensor in (sequences.lengths, *batch)] == ["cuda"] * 3


@given(
    st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=40),
    st.integers(1, 100),
    st.integers(0, 2**70),
    st.integers(0, 5),
)
@settings(deadline=None)
def test_items_are_drawn_by_their_weights_in_every_epoch(
    weights: list[float], batch: int, seed: int, epoch: int
) -> None:
    count = len(weights)
    order = BatchOrder(count, batch, seed, weights)
    steps = range(epoch * count // batch, (epoch + 1) * count // batch + 1)
    indices = torch.cat([order.indices(step) for step in steps])
    assert torch.equal(order.indices(steps[0]), BatchOrder(count, batch, seed, weights).indices(steps[0]))
    start = epoch * count - steps[0] * batch
    drawn = torch.bincount(indices[start : start + count], minlength=count)
    expected = count * torch.tensor(weights, dtype=torch.float64) / sum(weights)
    assert drawn.sum() == count
    assert (drawn - expected).abs().max() < 1 + 1e-6


def test_the_mean_of_many_epochs_is_the_weight_and_neighbours_are_in_random_order() -> None:
    weights = [0.1, 1.0, 2.5, 0.4]
    order = BatchOrder(4, 4, 7, weights)
    epochs = torch.stack([order.indices(step) for step in range(4000)])
    shares = torch.bincount(epochs.flatten(), minlength=4) / epochs.numel()
    assert shares.tolist() == pytest.approx([0.025, 0.25, 0.625, 0.1], abs=0.006)
    first = torch.bincount(epochs[:, 0], minlength=4) / len(epochs)
    assert first.tolist() == pytest.approx([0.025, 0.25, 0.625, 0.1], abs=0.03)


@given(SIZES, st.integers(0, 100))
@settings(deadline=None)
def test_equal_weights_give_every_item_once_an_epoch(sizes: tuple[int, int], seed: int) -> None:
    count, _ = sizes
    order = BatchOrder(count, count, seed, [0.3] * count)
    assert sorted(order.indices(3).tolist()) == list(range(count))


@given(SIZES, st.integers(1, 50), st.floats(0, 1, exclude_max=True), st.integers(0, 9))
def test_a_mixed_batch_has_a_share_of_the_other_items(
    sizes: tuple[int, int], others: int, share: float, step: int
) -> None:
    count, batch = sizes
    indices = MixedOrder(count, others, batch, share, 3407).indices(step)
    rows = min(max(1, round(batch * share)), batch - 1) if share else 0
    assert torch.equal(indices[: batch - rows], BatchOrder(count, batch - rows, 3407).indices(step))
    assert ((count <= indices[batch - rows :]) & (indices[batch - rows :] < count + others)).all()
    assert len(indices) == batch
