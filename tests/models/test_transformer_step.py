"""The Transformer one position at a time, with keys and values kept, against all positions at once."""

import pytest
import torch
from torch import Tensor

from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.models.transformer import Transformer

L, H, C, V, CONTEXT = 3, 2, 12, 11, 16


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig("transformer", V, CONTEXT, n_layer=L, n_head=H, n_embd=C, dropout=0.5)
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
    cache = torch.full((L, CONTEXT, batch, 2 * C), torch.nan, dtype=torch.float64)
    logits = model.prefill(ids[:, :first], cache)
    torch.testing.assert_close(logits, expected[:, first - 1], rtol=1e-10, atol=1e-10)
    step = model.steps(cache)
    for position in range(first, CONTEXT):
        logits = step(ids[:, position], position + 1)
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def test_keys_and_values_may_be_anywhere_in_the_cache(model: Transformer) -> None:
    batch, first = 7, 3
    ids = some_ids(batch)
    expected = model(ids)
    ordered = torch.full((L, first, batch, 2 * C), torch.nan, dtype=torch.float64)
    model.prefill(ids[:, :first], ordered)
    places = torch.randperm(first * batch, generator=torch.Generator().manual_seed(3)).view(first, batch)
    cache = torch.full((L, CONTEXT * batch, 2 * C), torch.nan, dtype=torch.float64)
    cache[:, places] = ordered
    for position in range(first, CONTEXT):
        used = (position + 1) * batch
        places = torch.cat((places, torch.arange(used - batch, used).unsqueeze(0)))
        logits = model.step(ids[:, position], cache[:, :used], places)
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def test_sequences_share_what_they_began_with(model: Transformer) -> None:
    ids = some_ids(4)
    ids[:, :5] = ids[0, :5]
    cache = torch.full((L, 20, 2 * C), torch.nan, dtype=torch.float64)
    model.prefill(ids[:1, :5], cache.unsqueeze(2))
    shared = torch.arange(5).unsqueeze(1)
    places = torch.cat((shared.expand(-1, 4), torch.tensor([[6, 7, 8, 9]])))
    logits = model.step(ids[:, 5], cache[:, :10], places)
    torch.testing.assert_close(logits, model(ids[:, :6])[:, -1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("in_order", [True, False])
@torch.inference_mode()
def test_a_step_writes_at_its_own_places_alone(model: Transformer, in_order: bool) -> None:
    ids = some_ids(3)
    cache = torch.zeros(L, 30, 2 * C, dtype=torch.float64)
    rows = cache.view(L, 10, 3, 2 * C)
    model.prefill(ids[:, :5], rows)
    before = cache.clone()
    if in_order:
        model.steps(rows)(ids[:, 5], 6)
    else:
        model.step(ids[:, 5], cache[:, :18], torch.arange(18).view(6, 3))
    assert torch.equal(cache[:, :15], before[:, :15])
    assert (cache[:, 15:18] != 0).all()
    assert (cache[:, 18:] == 0).all()
