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
    config = ModelConfig("transformer", V, CONTEXT, layers=L, heads=H, channels=C, dropout=0.5)
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
    cache = torch.full((L, 2, CONTEXT, batch, C), torch.nan, dtype=torch.float64)
    logits = model.prefill(ids[:, :first], cache[:, :, :first])
    torch.testing.assert_close(logits, expected[:, :first], rtol=1e-10, atol=1e-10)
    for position in range(first, CONTEXT):
        logits = model.step(ids[:, position], cache[:, :, : position + 1])
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def test_a_step_does_not_touch_what_is_kept_of_earlier_positions(model: Transformer) -> None:
    ids = some_ids(3)
    cache = torch.zeros(L, 2, CONTEXT, 3, C, dtype=torch.float64)
    model.prefill(ids[:, :5], cache[:, :, :5])
    before = cache.clone()
    model.step(ids[:, 5], cache[:, :, :6])
    assert torch.equal(cache[:, :, :5], before[:, :, :5])
    assert torch.equal(cache[:, :, 6:], before[:, :, 6:])
    assert (cache[:, :, 5] != 0).all()
