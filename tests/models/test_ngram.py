"""Kneser–Ney n-grams: held against their definition, and the soft targets that training takes from them."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from numpy.random import RandomState
from torch import Tensor

from flashmore.config import TrainConfig
from flashmore.data.batches import IGNORE, Sequences, encode_items
from flashmore.data.vocabulary import EOS, Vocabulary
from flashmore.models.config import ModelConfig
from flashmore.models.ngram import LONGEST, NgramModel, Ngrams
from flashmore.models.registry import build
from flashmore.training.compiled.flat import FlatStep
from flashmore.training.dataset import SMOOTHING_ORDER, Batch, Form, ItemDataset, ngram_targets
from flashmore.training.step import EagerStep, mean_loss, training_loss

NAMES = ("anna", "hanna", "susanna", "ann", "bella", "isabella", "anna")
VOCABULARY = Vocabulary.from_items(NAMES)
V = VOCABULARY.size
CPU = torch.device("cpu")
Token = tuple[str, str]


def encoded(*items: str) -> Sequences:
    return encode_items(items, VOCABULARY, 1 + max(map(len, NAMES)), "cpu")


def tokens(items: Iterable[str]) -> list[Token]:
    """Every character, EOS (ETX) included, with the `LONGEST` characters before it (STX before the item)."""
    texts = ["\x02" * LONGEST + item + "\x03" for item in items]
    return [(text[end - LONGEST : end], text[end]) for text in texts for end in range(LONGEST, len(text))]


def by_definition(counted: list[Token], everything: list[Token], order: int, context: str) -> list[float]:
    """The distribution of the next character, by Chen and Goodman's formula; discounts of `everything`."""

    def counts(found: list[Token], length: int) -> Counter[Token]:
        if length == order - 1:
            return Counter((before[LONGEST - length :], after) for before, after in found)
        longer = {(before[LONGEST - length - 1 :], after) for before, after in found}
        return Counter((before[1:], after) for before, after in longer)

    characters = ["\x03", *VOCABULARY.characters]
    result = [1 / V] * V
    for length in range(order):
        times = Counter(counts(everything, length).values())
        discount = times[1] / (times[1] + 2 * times[2]) if times[1] else 0.5
        here = counts(counted, length)
        seen = [here[context[LONGEST - length :], character] for character in characters]
        if total := sum(seen):
            kinds = sum(count > 0 for count in seen)
            result = [
                (max(count - discount, 0) + discount * kinds * shorter) / total
                for count, shorter in zip(seen, result, strict=True)
            ]
    return result


@pytest.mark.parametrize("order", [1, 2, 3, 5, LONGEST])
def test_a_position_left_out_is_a_count_less(order: int) -> None:
    everything = tokens(NAMES)
    found = Ngrams(encoded(*NAMES), V).left_out(order)
    for place, (context, _) in enumerate(everything):
        counted = everything[:place] + everything[place + 1 :]
        assert found[place].tolist() == pytest.approx(by_definition(counted, everything, order, context))


@pytest.mark.parametrize("order", [1, 2, 5, LONGEST])
def test_a_generating_model_has_the_distributions_of_the_definition(order: int) -> None:
    everything, items = tokens(NAMES), ("hannn", "susi", "")
    held_out = encoded(*items)
    found = NgramModel(Ngrams(encoded(*NAMES), V), order)(held_out.ids.long()).exp()[
        held_out.targets != IGNORE
    ]
    for (context, _), distribution in zip(tokens(items), found, strict=True):
        assert distribution.tolist() == pytest.approx(by_definition(everything, everything, order, context))


def test_the_best_order_has_the_lowest_loss_on_the_held_out_items() -> None:
    everything, characters = tokens(NAMES), ["\x03", *VOCABULARY.characters]
    held_out = ("anna", "bebe", "")
    losses = []
    for order in range(1, LONGEST + 1):
        logs = [
            math.log(by_definition(everything, everything, order, context)[characters.index(after)])
            for context, after in tokens(held_out)
        ]
        losses.append(-sum(logs) / len(logs))
    best = Ngrams(encoded(*NAMES), V).best(encoded(*held_out))
    assert best.order == losses.index(min(losses)) + 1
    assert best.loss == pytest.approx(min(losses))


@pytest.mark.parametrize("order", [1, 3, LONGEST])
def test_samples_follow_the_distributions_of_the_model(order: int) -> None:
    ngrams, context = Ngrams(encoded(*NAMES), V), 1 + max(map(len, NAMES))
    ids = ngrams.sample(order, 20_000, context, RandomState(1))
    assert torch.equal(ids, ngrams.sample(order, 20_000, context, RandomState(1)))
    assert (ids[:, -1] == EOS).all()
    model = NgramModel(ngrams, order)
    for item in ("", "a", "an"):
        drawn = encoded(*VOCABULARY.decode_rows(ids.numpy()), item)
        length = len(item) + 1
        alike = (drawn.ids[:, :length] == drawn.ids[-1, :length]).all(1) & (drawn.lengths >= length)
        following = drawn.targets[:-1, length - 1][alike[:-1]].long()
        found = torch.bincount(following, minlength=V) / len(following)
        wanted = model(drawn.ids[-1:, :length].long())[0, -1].exp()
        # Those without EOS within the context are dropped, so shorter items are a little more frequent.
        assert (found - wanted).abs().max() < 4 / math.sqrt(len(following)) + 0.02


def test_sampled_items_are_a_share_of_each_batch_and_not_counted() -> None:
    sampled = ("annabel", "bell", "sanna")
    sequences, ngrams = encoded(*NAMES, *sampled), Ngrams(encoded(*NAMES), V)
    soft = partial(ngram_targets, vocab_size=V, sampled=len(sampled))
    data = ItemDataset(sequences, 8, seed=1, soft=soft, sampled=len(sampled), share=0.25)
    own = ngrams.left_out(SMOOTHING_ORDER)
    after = ngrams.after(encoded(*sampled).ids.long(), SMOOTHING_ORDER)
    after = after[encoded(*sampled).targets != IGNORE]
    every = torch.split(torch.cat((own, after)), sequences.lengths.tolist())
    for step in range(3):
        indices = data.order.indices(step)
        assert (indices < len(NAMES)).sum() == 6
        batch = data.batch(step, "packed")
        assert batch.soft_targets is not None
        assert torch.equal(batch.soft_targets, torch.cat([every[index] for index in indices.tolist()]))


def test_the_targets_of_sampled_items_are_the_distributions_alone() -> None:
    sampled, weight = ("annabel", "bell", "sanna"), 0.3
    sequences = encoded(*NAMES, *sampled)
    soft = partial(ngram_targets, vocab_size=V, sampled=len(sampled), weight=weight)
    data = ItemDataset(sequences, 8, soft=soft, sampled=len(sampled), share=0.5)
    batch = data.batch(0, "trimmed")
    assert batch.soft_targets is not None
    mixed = weight * batch.soft_targets + (1 - weight) * F.one_hot(batch.targets.clamp(min=0), V)
    after = Ngrams(encoded(*NAMES), V).after(batch.ids[4:], SMOOTHING_ORDER)
    real = batch.targets[4:] != IGNORE
    torch.testing.assert_close(mixed[4:][real], after[real])


@pytest.mark.parametrize("form", ["padded", "trimmed", "packed"])
def test_every_form_of_a_batch_has_the_same_soft_targets(form: Form) -> None:
    sequences = encoded(*NAMES)
    data = ItemDataset(sequences, batch_size=5, seed=1, soft=partial(ngram_targets, vocab_size=V))
    batch = data.batch(3, form)
    assert batch.soft_targets is not None
    real = batch.targets != IGNORE
    every = torch.split(Ngrams(sequences, V).left_out(SMOOTHING_ORDER), sequences.lengths.tolist())
    wanted = torch.cat([every[index] for index in data.order.indices(3).tolist()])
    assert torch.equal(batch.soft_targets[real], wanted)
    assert batch.soft_targets.shape == (*batch.targets.shape, V)


def smoothed_batch(*, soft: Tensor | None = None) -> Batch:
    sequences = encoded(*NAMES)
    batch = ItemDataset(sequences, 4, soft=partial(ngram_targets, vocab_size=V)).batch(0, "trimmed")
    return batch if soft is None else replace(batch, soft_targets=soft)


def test_the_minimised_loss_is_the_cross_entropy_with_mixed_targets() -> None:
    batch = smoothed_batch()
    assert batch.soft_targets is not None
    logits = torch.randn(*batch.soft_targets.shape, generator=torch.Generator().manual_seed(0))
    minimised, loss = training_loss(logits, batch, 0.3)
    real = batch.targets != IGNORE
    mixed = 0.3 * batch.soft_targets[real] + 0.7 * F.one_hot(batch.targets[real], V)
    assert minimised.item() == pytest.approx(F.cross_entropy(logits[real], mixed).item())
    assert loss.item() == pytest.approx(mean_loss(logits, batch.targets).item())


def test_soft_targets_that_are_the_characters_change_nothing() -> None:
    batch = smoothed_batch()
    real = (batch.targets != IGNORE)[..., None]
    hard = smoothed_batch(soft=F.one_hot(batch.targets.clamp(min=0), V).float() * real)
    logits = torch.randn(*batch.targets.shape, V, generator=torch.Generator().manual_seed(0))
    minimised, loss = training_loss(logits, hard, 0.5)
    assert minimised.item() == pytest.approx(loss.item())


def test_the_flat_step_smooths_as_the_eager_one() -> None:
    config = TrainConfig(model="transformer", ngram_smoothing=0.5, n_layer=1, n_embd=16, optimizer="adamw")
    config = replace(config, learning_rate=1e-2, weight_decay=0.1, warmup_steps=0, max_steps=5)
    sizes = ModelConfig("transformer", V, 9, n_layer=1, n_embd=16, attention="manual")
    data = ItemDataset(encoded(*NAMES), 4, soft=partial(ngram_targets, vocab_size=V))
    weights = []
    for flat in (False, True):
        model = build(sizes, seed=1)
        step = FlatStep(model, config, CPU, None) if flat else EagerStep(model, config, CPU, fused=True)
        losses = [step([[data.batch(number, "packed")]], [(1e-2, 0.0)]).item() for number in range(3)]
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    plain = build(sizes, seed=1)
    unsmoothed = EagerStep(plain, replace(config, ngram_smoothing=0.0), CPU, fused=True)
    for number in range(3):
        unsmoothed([[replace(data.batch(number, "packed"), soft_targets=None)]], [(1e-2, 0.0)])
    assert losses[-1] < losses[0]
    assert torch.allclose(weights[0], weights[1], atol=1e-5)
    other = torch.cat([parameter.detach().flatten() for parameter in plain.parameters()])
    assert not torch.allclose(weights[0], other, atol=1e-3)
