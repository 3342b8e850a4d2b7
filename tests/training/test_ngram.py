"""Kneser–Ney n-grams: probabilities, by hand and in sum, and the order that is chosen."""

import math

import pytest

from flashmore.training.ngram import BOS, EOS, LONGEST, Ngrams

NAMES = ("anna", "hanna", "susanna", "ann", "bella", "isabella")


def test_one_character_by_hand() -> None:
    """Counts 2, 1 and 3 of 6; the discount 1 / (1 + 2 · 1) is spread over 3 characters."""
    model = Ngrams(("a", "a", "b"), vocab_size=3)
    found = [model.probabilities(BOS * LONGEST, character)[0] for character in ("a", "b", EOS)]
    assert found == pytest.approx([1 / 3, 1 / 6, 1 / 2])


@pytest.mark.parametrize("context", ["", "ann", "bell", "q", "susann"])
def test_probabilities_sum_to_one_in_every_order(context: str) -> None:
    characters = [*sorted(set("".join(NAMES))), EOS]
    model = Ngrams(NAMES, len(characters))
    every = [model.probabilities(BOS * LONGEST + context, character) for character in characters]
    assert [sum(order) for order in zip(*every, strict=True)] == pytest.approx([1.0] * LONGEST)


def test_the_best_order_has_the_lowest_loss() -> None:
    model = Ngrams(NAMES, vocab_size=10)
    best = model.best(("anna",))
    losses = []
    for order in range(LONGEST):
        text = BOS * LONGEST + "anna" + EOS
        ends = range(LONGEST, len(text))
        logs = [math.log(model.probabilities(text[:end], text[end])[order]) for end in ends]
        losses.append(-sum(logs) / 5)
    assert best.order == losses.index(min(losses)) + 1
    assert best.loss == pytest.approx(min(losses))
