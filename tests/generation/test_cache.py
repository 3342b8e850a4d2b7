"""A decoder in the middle of a batch gives the logits of the whole sequences, whatever became of its rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flashmore.generation.cache import CachedDecoder, Decoder, decoder_for
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.models.transformer import Transformer
from flashmore.specs import models

V, CONTEXT = 7, 9


def model_named(name: str) -> nn.Module:
    config = ModelConfig(name, V, CONTEXT, n_layer=2, n_head=2, n_embd=8, dropout=0.3)
    model = build(config, seed=3).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) * 0.3)
    return model


MODELS = {name: model_named(name) for name in models()}


def check(model: nn.Module, ids: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(logits, model(ids)[:, -1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", tuple(models()))
@settings(max_examples=25)
@given(data=st.data())
@torch.inference_mode()
def test_logits_are_those_of_the_whole_sequences_to_the_edge_of_the_context(
    name: str, data: st.DataObject
) -> None:
    """Rows go on as they are, are dropped one by one or many at once, come twice, and change places."""
    most = data.draw(st.integers(1, 12))
    batch, first = data.draw(st.integers(1, most)), data.draw(st.integers(1, CONTEXT))
    numbers = st.integers(0, V - 1)

    def some_ids(*shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        return torch.tensor(data.draw(st.lists(numbers, min_size=count, max_size=count))).view(shape)

    ids = some_ids(batch, first)
    decoder = decoder_for(MODELS[name])
    check(MODELS[name], ids, decoder.start(ids))
    for _ in range(first, CONTEXT):
        if data.draw(st.booleans()):
            rows = None
        else:
            any_rows = st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=most)
            in_order = st.sets(st.integers(0, len(ids) - 1), min_size=1).map(sorted)
            rows = torch.tensor(data.draw(any_rows | in_order))
            ids = ids[rows]
        new = some_ids(len(ids))
        ids = torch.cat((ids, new.unsqueeze(1)), dim=1)
        check(MODELS[name], ids, decoder.extend(new, rows))


def test_the_transformer_alone_is_cached() -> None:
    kinds: dict[str, type[Decoder]] = {name: type(decoder_for(MODELS[name])) for name in models()}
    assert {name for name, kind in kinds.items() if kind is CachedDecoder} == {"transformer"}
    assert {kind for name, kind in kinds.items() if name != "transformer"} == {Decoder}


@torch.inference_mode()
def test_float32_differs_by_rounding_alone() -> None:
    config = ModelConfig("transformer", 27, 16)
    model = build(config, seed=5).eval()
    assert isinstance(model, Transformer)
    ids = torch.randint(27, (50, 16), generator=torch.Generator().manual_seed(6))
    expected = model(ids)
    decoder = CachedDecoder(model)
    decoder.start(ids[:, :1])
    for position in range(1, 16):
        error = (decoder.extend(ids[:, position]) - expected[:, position]).abs().max()
        assert error <= 32 * torch.finfo(torch.float32).eps * expected.abs().max()
