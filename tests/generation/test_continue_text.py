"""Streams of text against each character computed by itself, from the whole window that it follows."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flashmore.generation.cache import decoder_for
from flashmore.generation.draw import next_probabilities
from flashmore.generation.options import GenerateOptions
from flashmore.generation.text import continuations
from flashmore.models.config import ACTIVATIONS, ModelConfig
from flashmore.models.onednn import PackedLinear, pack
from flashmore.models.registry import build

V = 6
MODELS = ("transformer", "gru", "bow")
CONTEXTS = range(1, 10)


def model_named(name: str, context: int) -> nn.Module:
    """In float64, so that only the last bits depend on what is computed together."""
    model = build(ModelConfig(name, V, context, n_layer=2, n_head=2, n_embd=8), seed=3).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) * 0.5)
    return model


BUILT = {(name, context): model_named(name, context) for name in MODELS for context in CONTEXTS}


@torch.inference_mode()
def by_whole_windows(
    model: nn.Module,
    context: int,
    ids: list[int],
    length: int,
    options: GenerateOptions,
    seed: int,
    stride: int,
) -> list[int]:
    numbers, window, drawn = random.Random(seed), list(ids), []
    for _ in range(length):
        if len(window) > context:
            window = window[stride:]
        probabilities = next_probabilities(model(torch.tensor([window]))[:, -1], options)[0]
        sums = probabilities.cumsum(0)
        drawn.append(int((sums <= numbers.random() * sums[-1]).sum()))
        window.append(drawn[-1])
    return drawn


@settings(max_examples=150)
@given(data=st.data())
def test_every_stream_is_what_it_would_be_alone_and_uncached(data: st.DataObject) -> None:
    name, context = data.draw(st.sampled_from(MODELS)), data.draw(st.sampled_from(CONTEXTS))
    ids = data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=context))
    length, stride = data.draw(st.integers(1, 25)), data.draw(st.integers(1, context))
    seeds = data.draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
    options = data.draw(
        st.sampled_from(
            (GenerateOptions(), GenerateOptions(temperature=0.7, top_k=4), GenerateOptions(top_k=1))
        )
    )
    model = BUILT[name, context]
    drawn = list(continuations(decoder_for(model), ids, length, options, seeds, stride))
    for stream, seed in enumerate(seeds):
        expected = by_whole_windows(model, context, ids, length, options, seed, stride)
        assert [row[stream] for row in drawn] == expected


def test_more_random_numbers_than_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BUILT["bow", 3]
    expected = by_whole_windows(model, 3, [1], 40, GenerateOptions(), 8, 1)
    monkeypatch.setattr("flashmore.generation.text._NUMBERS", 7)
    assert [
        row[1] for row in continuations(decoder_for(model), [1], 40, GenerateOptions(), [9, 8])
    ] == expected


def test_many_sequences_are_prefilled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmore.generation.cache._NUMBERS", 2 * 5 * 8)
    model, seeds = BUILT["transformer", 5], [3, 4, 5, 6, 7]
    drawn = list(continuations(decoder_for(model), [1, 2], 20, GenerateOptions(), seeds, 2))
    for stream, seed in enumerate(seeds):
        expected = by_whole_windows(model, 5, [1, 2], 20, GenerateOptions(), seed, 2)
        assert [row[stream] for row in drawn] == expected


# Packed weights.

onednn = pytest.mark.skipif(
    type(pack(nn.Sequential(nn.Linear(2, 2)))[0]) is nn.Linear,  # type: ignore[index]
    reason="needs a build of PyTorch with MKL and oneDNN",
)


@onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (1, 1, 5), (2, 5), (3, 4, 5), (300, 5)])
@torch.inference_mode()
def test_packed_weights_give_the_same_but_for_rounding(shape: tuple[int, ...], bias: bool) -> None:
    linear = nn.Linear(5, 7, bias=bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x), rtol=1e-5, atol=1e-6)


@onednn
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.inference_mode()
def test_all_linear_layers_of_a_float32_model_are_packed_and_share_their_weights(activation: str) -> None:
    config = ModelConfig(
        "transformer", V, 8, n_layer=2, n_head=2, n_embd=8, tie_weights=True, activation=activation
    )
    plain, model = build(config, seed=5).eval(), pack(build(config, seed=5).eval())
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(PackedLinear) == 2 * 4 + 1
    assert nn.Linear not in kinds
    assert model.get_parameter("lm_head.weight") is model.get_parameter("wte.weight")
    ids = torch.randint(V, (3, 7), generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(model(ids), plain(ids), rtol=1e-5, atol=1e-6)
    for count in (1, 3):  # one sequence has products of its own
        expected, found = decoder_for(plain), decoder_for(model)
        torch.testing.assert_close(
            found.start(ids[:count]), expected.start(ids[:count]), rtol=1e-5, atol=1e-6
        )
        logits = found.extend(ids[:count, 0]), expected.extend(ids[:count, 0])
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-6)


def test_other_precisions_stay_as_they_are() -> None:
    kinds = {type(module) for module in pack(model_named("transformer", 4)).modules()}
    assert PackedLinear not in kinds
    assert nn.Linear in kinds
