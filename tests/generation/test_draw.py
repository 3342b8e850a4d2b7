"""Many draws at once against each draw alone, and against the model's probabilities."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from flashmore.errors import RunError
from flashmore.generation import draw as drawing
from flashmore.generation.cache import decoder_for
from flashmore.generation.draw import Drawn, draw, next_probabilities, pick, random_numbers
from flashmore.generation.options import GenerateOptions
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.specs import models

V, CONTEXT = 5, 6
OPTIONS = [
    GenerateOptions(),
    GenerateOptions(temperature=0.6, top_k=4, top_p=0.9),
    GenerateOptions(top_k=1),
]


def model_named(name: str, spread: float = 0.5) -> nn.Module:
    """In float64, so that batches of every size give the same logits but for the last bits."""
    model = build(ModelConfig(name, V, CONTEXT, n_layer=2, n_head=2, n_embd=8), seed=3).double().eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return model


MODELS = {name: model_named(name) for name in models()}


def seeded(model: nn.Module, count: int, options: GenerateOptions, prefix: tuple[int, ...] = ()) -> Drawn:
    return draw(decoder_for(model), prefix, count, CONTEXT, options, random_numbers(7))


@torch.inference_mode()
def alone(
    model: nn.Module, numbers: list[float], options: GenerateOptions, prefix: tuple[int, ...]
) -> tuple[list[int], float]:
    """One draw by itself: the whole sequence anew at each character."""
    ids = [0, *prefix]
    for number in numbers:
        probabilities = next_probabilities(model(torch.tensor([ids]))[:, -1], options)[0].tolist()
        reached, drawn = 0.0, 0
        while reached + probabilities[drawn] <= number:
            reached += probabilities[drawn]
            drawn += 1
        ids.append(drawn)
        if drawn == 0:
            break
    scores = model(torch.tensor([ids[:-1]])).log_softmax(-1)[0]
    log_prob = sum(float(scores[place, number]) for place, number in enumerate(ids[1:]))
    return (ids[1:] + [0] * CONTEXT)[:CONTEXT], log_prob


@pytest.mark.parametrize("devices", [(), ("cpu",)], ids=["shared rows", "own rows"])
@pytest.mark.parametrize("prefix", [(), (2,), (1, 3, 2), (1, 2, 3, 4, 1)])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "filtered", "greedy"])
@pytest.mark.parametrize("name", ["bigram", "gru", "transformer"])
def test_a_draw_is_what_it_would_be_alone(
    name: str,
    options: GenerateOptions,
    prefix: tuple[int, ...],
    devices: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether rows are shared and left, as here, or each draw keeps its own, as on CUDA."""
    monkeypatch.setattr(drawing, "_KEPT_APART", devices)
    count = 60
    drawn = seeded(MODELS[name], count, options, prefix)
    numbers = random_numbers(7).random_sample((count, CONTEXT - len(prefix))).tolist()
    for row, log_prob, own in zip(drawn.ids.tolist(), drawn.log_probs.tolist(), numbers, strict=True):
        ids, expected = alone(MODELS[name], own, options, prefix)
        assert row == ids
        assert log_prob == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", tuple(models()))
def test_more_draws_begin_with_the_same(name: str) -> None:
    few, many = (seeded(MODELS[name], count, GenerateOptions()) for count in (9, 300))
    assert torch.equal(few.ids, many.ids[:9])
    torch.testing.assert_close(few.log_probs, many.log_probs[:9])


def test_the_transformers_sequences_come_as_often_as_their_log_prob_says() -> None:
    count = 30_000
    drawn = seeded(MODELS["transformer"], count, GenerateOptions())
    log_probs = {tuple(row): p for row, p in zip(drawn.ids.tolist(), drawn.log_probs.tolist(), strict=True)}
    counts = Counter(map(tuple, drawn.ids.tolist()))
    means = {row: count * math.exp(p) for row, p in log_probs.items() if count * math.exp(p) >= 5}
    assert len(means) > 100
    statistic = sum((counts[row] - mean) ** 2 / mean for row, mean in means.items())
    degrees = len(means)
    assert statistic < degrees + 4 * math.sqrt(2 * degrees) + 8  # beyond the 1 − 10⁻⁴ quantile of χ²
    assert statistic > degrees - 4 * math.sqrt(2 * degrees)  # nor better than chance allows


@pytest.mark.cuda
@pytest.mark.parametrize("name", tuple(models()))
def test_a_gpu_draws_the_same(name: str) -> None:
    here = seeded(MODELS[name], 200, GenerateOptions())
    there = seeded(model_named(name).cuda(), 200, GenerateOptions())
    assert torch.equal(here.ids, there.ids)
    torch.testing.assert_close(here.log_probs, there.log_probs)


WEIGHTS = st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(any)


@given(weights=WEIGHTS, number=st.floats(0, 1, exclude_max=True) | st.just(1 - 2**-53))
def test_pick_finds_the_part_of_the_interval_and_never_a_probability_of_zero(
    weights: list[float], number: float
) -> None:
    probabilities = torch.tensor([weights], dtype=torch.float64)
    probabilities /= probabilities.sum()
    found = int(pick(probabilities, torch.tensor([number], dtype=torch.float64), torch.tensor([0])))
    share = probabilities[0]
    assert share[found] > 0
    assert share[:found].sum() <= number + 1e-12
    assert share[: found + 1].sum() >= number - 1e-12


def test_pick_takes_each_from_its_own_row() -> None:
    probabilities = torch.eye(4, dtype=torch.float64)
    rows: Tensor = torch.tensor([3, 0, 2, 2, 1])
    numbers = torch.tensor([0.0, 0.2, 0.5, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert pick(probabilities, numbers, rows).tolist() == rows.tolist()


def test_logits_that_are_no_numbers_are_named() -> None:
    model = model_named("transformer")
    with torch.no_grad():
        model.get_parameter("lm_head.weight").fill_(1e308)
    with pytest.raises(RunError, match="finite"):
        seeded(model, 3, GenerateOptions())
