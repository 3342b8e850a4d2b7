"""The Bigram against counting."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashmore.models.config import ModelConfig
from flashmore.models.simple import Bigram

WORDS = [[1, 2, 2, 3], [2, 3], [3, 1, 2], [1], [2, 2, 2, 1, 3]]


def sequences() -> tuple[Tensor, Tensor]:
    longest = max(map(len, WORDS)) + 1
    ids = torch.tensor([[0, *word] + [0] * (longest - len(word) - 1) for word in WORDS])
    targets = torch.tensor([[*word, 0] + [-1] * (longest - len(word) - 1) for word in WORDS])
    return ids, targets


def bigram() -> Bigram:
    return Bigram(ModelConfig(model="bigram", vocab_size=4, block_size=8))


def test_log_counts_give_the_entropy_of_the_counts() -> None:
    pairs = Counter(pair for word in WORDS for pair in pairwise([0, *word, 0]))
    firsts = Counter[int]()
    for (first, _), count in pairs.items():
        firsts[first] += count
    entropy = -sum(n * math.log(n / firsts[first]) for (first, _), n in pairs.items()) / pairs.total()

    model = bigram().double()
    with torch.no_grad():
        for row in range(4):
            for column in range(4):
                model.logits[row, column] = math.log(pairs[row, column]) if pairs[row, column] else -1e9
    ids, targets = sequences()
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=-1)
    assert loss.item() == pytest.approx(entropy, rel=1e-12)


def test_before_training_every_character_is_equally_likely() -> None:
    ids, targets = sequences()
    loss = F.cross_entropy(bigram()(ids).flatten(0, 1), targets.flatten(), ignore_index=-1)
    assert loss.item() == pytest.approx(math.log(4), rel=1e-6)


def test_the_logits_are_the_row_of_the_last_id() -> None:
    model = bigram()
    with torch.no_grad():
        model.logits.copy_(torch.arange(16.0).view(4, 4))
    assert model(torch.tensor([[0, 2, 1]])).tolist() == [[[0, 1, 2, 3], [8, 9, 10, 11], [4, 5, 6, 7]]]
