"""An evaluation is the mean over all characters, whatever the batches that it is made in."""

from collections import Counter
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from flashmore.data.batches import encode_items
from flashmore.data.vocabulary import Vocabulary
from flashmore.memory import LARGEST_TENSOR
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.specs import models
from flashmore.training import dataset
from flashmore.training.dataset import ItemDataset
from flashmore.training.step import mean_loss
from flashmore.training.trainer import evaluate

ITEMS = ["ab" * 499 + "a", *("abc"[: 1 + number % 3] for number in range(3000))]
VOCABULARY = Vocabulary.from_items(ITEMS)


def widest_rows(model: nn.Module) -> list[tuple[int, ...]]:
    """The shapes of all inputs from now on."""
    shapes: list[tuple[int, ...]] = []
    model.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    return shapes


@pytest.mark.parametrize("name", models())
def test_one_long_item_among_many_costs_one_long_row(name: str) -> None:
    model_config = ModelConfig(
        name, VOCABULARY.size, block_size=1000, n_layer=1, n_head=2, n_embd=32, attention="manual"
    )
    model = build(model_config, seed=1)
    shapes = widest_rows(model)
    data = ItemDataset(encode_items(ITEMS, VOCABULARY, 1000, "cpu"))
    loss = evaluate(model, data, nullcontext)
    assert sum(rows for rows, _ in shapes) == len(ITEMS)
    assert all(rows == 1 or rows * positions * 32 * 4 <= LARGEST_TENSOR for rows, positions in shapes)
    assert max(rows * positions for rows, positions in shapes) < 20_000
    ids, targets = data.sequences.take(torch.arange(200))
    assert loss == pytest.approx(one_by_one(model, ids, targets, ITEMS), rel=1e-5)


@torch.no_grad()
def one_by_one(model: nn.Module, ids: Tensor, targets: Tensor, items: list[str]) -> float:
    """The same from each different item alone, weighted by how often it comes."""
    model.eval()
    losses: dict[str, float] = {}
    for item, row, target in zip(items, ids, targets, strict=False):
        if item not in losses:
            length = len(item) + 1
            losses[item] = mean_loss(model(row[None, :length]), target[None, :length]).item()
    characters = [len(item) + 1 for item in items]
    total = sum(losses[item] * count for item, count in zip(items, characters, strict=True))
    return total / sum(characters)


def test_of_a_huge_part_the_same_items_are_evaluated_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alphabet = Vocabulary.from_items([chr(97 + number) for number in range(20)])
    items = [
        chr(97 + number % 20) * (1 + number // 20 % 3) for number in range(1200)
    ]  # 3 positions on average
    data = ItemDataset(encode_items(items, alphabet, 8, "cpu"))

    def evaluated() -> list[list[int]]:
        batches = (make() for make in data.evaluation(lambda _: 50))
        return [row[row >= 0].tolist() for batch in batches for row in batch.targets]

    whole = evaluated()
    assert len(whole) == len(items)
    monkeypatch.setattr(dataset, "MOST_EVALUATED", 900)
    sample = evaluated()
    assert sample == evaluated()
    assert len(sample) == 300
    counts = Counter(map(tuple, sample))
    assert not counts - Counter(map(tuple, whole)), "an item is evaluated more than once"
    assert {row[0] for row in sample} == {row[0] for row in whole}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_count_an_item_as_often_as_its_copies_would(dtype: torch.dtype) -> None:
    items, weights = ["a", "abc", "ca", "bbbbbbbb"], [3.0, 1.0, 2.0, 5.0]
    copies = [item for item, weight in zip(items, weights, strict=True) for _ in range(int(weight))]
    config = ModelConfig("mlp", VOCABULARY.size, block_size=9, n_embd=16)
    model = build(config, seed=1)
    once = ItemDataset(encode_items(items, VOCABULARY, 9, "cpu"), weights=weights)
    often = ItemDataset(encode_items(copies, VOCABULARY, 9, "cpu"))
    precision = partial(torch.autocast, "cpu", dtype=dtype, enabled=dtype != torch.float32)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-3
    assert evaluate(model, once, precision) == pytest.approx(evaluate(model, often, precision), rel=tolerance)
    assert once.tokens_a_batch == pytest.approx(often.tokens_a_batch)
