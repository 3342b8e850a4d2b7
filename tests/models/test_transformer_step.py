"""The Transformer one position at a time, with keys and values kept, against all positions at once."""

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from flashmore.models.config import ACTIVATIONS, ModelConfig
from flashmore.models.kv_cache import InOrder, attend_anywhere, attend_in_order
from flashmore.models.registry import build
from flashmore.models.transformer import Transformer

L, H, C, V, CONTEXT = 3, 2, 12, 11, 16


@pytest.fixture(scope="module", params=itertools.product(ACTIVATIONS, (True, False)))
def model(request: pytest.FixtureRequest) -> Transformer:
    activation, bias = request.param
    config = ModelConfig(
        "transformer",
        V,
        CONTEXT,
        n_layer=L,
        n_head=H,
        n_embd=C,
        dropout=0.5,
        bias=bias,
        activation=activation,
    )
    built = build(config, seed=0).double().eval()
    assert isinstance(built, Transformer)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from where weights of 1 and biases of 0 hide mistakes
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return built


def some_ids(batch: int) -> Tensor:
    return torch.randint(V, (batch, CONTEXT), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("first", range(1, CONTEXT + 1))
@torch.inference_mode()
def test_every_position_after_every_prefix_gives_the_logits_of_forward(
    model: Transformer, batch: int, first: int
) -> None:
    ids = some_ids(batch)
    expected = model(ids)
    cache = torch.full((L, CONTEXT, 2, batch, C), torch.nan, dtype=torch.float64)
    logits = model.prefill(ids[:, :first], cache)
    torch.testing.assert_close(logits, expected[:, first - 1], rtol=1e-10, atol=1e-10)
    in_order = InOrder(cache, H)
    for position in range(first, CONTEXT):
        if batch == 1:
            logits = model.step_of_one()(ids[:, position], position + 1, in_order)
        else:
            logits = step_in_order(model, ids[:, position], position + 1, in_order)
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-10, atol=1e-10)


def step_in_order(model: Transformer, ids: Tensor, length: int, in_order: InOrder) -> Tensor:
    attends = [
        partial(attend_in_order, place=place, keys=keys, values=values)
        for place, keys, values in in_order.up_to(length)
    ]
    return model.step()(ids, length, attends)


def step_anywhere(model: Transformer, ids: Tensor, cache: Tensor, places: Tensor) -> Tensor:
    attends = [partial(attend_anywhere, kept=kept, places=places, n_head=H) for kept in cache]
    return model.step()(ids, places.size(1), attends)


@torch.inference_mode()
def test_keys_and_values_may_be_anywhere_in_the_cache(model: Transformer) -> None:
    batch, first = 7, 3
    ids = some_ids(batch)
    expected = model(ids)
    ordered = torch.full((L, first, 2, batch, C), torch.nan, dtype=torch.float64)
    model.prefill(ids[:, :first], ordered)
    places = torch.randperm(first * 2 * batch, generator=torch.Generator().manual_seed(3)).view(first, 2, -1)
    cache = torch.full((L, CONTEXT * 2 * batch, C), torch.nan, dtype=torch.float64)
    cache[:, places] = ordered
    places = places.transpose(0, 1)
    for position in range(first, CONTEXT):
        used = (position + 1) * 2 * batch
        places = torch.cat((places, torch.arange(used - 2 * batch, used).view(2, 1, batch)), dim=1)
        logits = step_anywhere(model, ids[:, position], cache[:, :used], places)
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def test_sequences_share_what_they_began_with(model: Transformer) -> None:
    ids = some_ids(4)
    ids[:, :5] = ids[0, :5]
    cache = torch.full((L, 40, C), torch.nan, dtype=torch.float64)
    model.prefill(ids[:1, :5], cache.view(L, 20, 2, 1, C))
    shared = torch.arange(10).view(5, 2, 1).transpose(0, 1)
    places = torch.cat((shared.expand(-1, -1, 4), torch.arange(12, 20).view(2, 1, 4)), dim=1)
    logits = step_anywhere(model, ids[:, 5], cache[:, :20], places)
    torch.testing.assert_close(logits, model(ids[:, :6])[:, -1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("in_order", [True, False])
@torch.inference_mode()
def test_a_step_writes_at_its_own_places_alone(model: Transformer, in_order: bool) -> None:
    ids = some_ids(3)
    cache = torch.zeros(L, 60, C, dtype=torch.float64)
    rows = cache.view(L, 10, 2, 3, C)
    model.prefill(ids[:, :5], rows)
    before = cache.clone()
    if in_order:
        step_in_order(model, ids[:, 5], 6, InOrder(rows, H))
    else:
        places = torch.arange(36).view(6, 2, 3).transpose(0, 1)
        step_anywhere(model, ids[:, 5], cache[:, :36], places)
    assert torch.equal(cache[:, :30], before[:, :30])
    assert (cache[:, 30:36] != 0).all()
    assert (cache[:, 36:] == 0).all()
