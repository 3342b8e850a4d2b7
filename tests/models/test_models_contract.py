"""The promises that every model keeps, whatever stands inside it."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flashmore.backends.contract import attention
from flashmore.errors import BackendUnavailable, ConfigError
from flashmore.models.config import LARGEST_SIZE, ModelConfig
from flashmore.models.registry import build, count_parameters
from flashmore.specs import backends, models

every_model = pytest.mark.parametrize("name", tuple(models()))
every_backend = pytest.mark.parametrize(
    "backend", [name for name, spec in backends().items() if not spec.compiled]
)

SMALL = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}


def small(name: str, **changes: object) -> ModelConfig:
    return ModelConfig(model=name, **{**SMALL, **changes})  # type: ignore[arg-type]


def some_ids(config: ModelConfig, batch: int, positions: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, positions), generator=generator)


def trained_looking(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight a value, so that no promise holds merely because something starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def skip_unless_it_runs(backend: str) -> None:
    q = torch.zeros(1, 2, 4, 8)
    try:
        attention(q, q, q, backend=backend, causal=True)
    except BackendUnavailable as error:
        pytest.skip(f"{backend}: {'; '.join(error.reasons)}")


def test_an_unknown_model_is_refused_with_the_valid_names() -> None:
    with pytest.raises(ConfigError) as caught:
        small("tranformer")
    assert "tranformer" in caught.value.found
    assert all(name in caught.value.valid for name in models())


@pytest.mark.parametrize("size", ["vocab_size", "block_size", "n_layer", "n_head", "n_embd"])
@pytest.mark.parametrize("value", [0, -3, LARGEST_SIZE + 1, 10**30])
def test_a_size_out_of_range_is_refused_by_name(size: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{size} = {value}"):
        small("transformer", **{size: value})


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_a_dropout_that_is_no_probability_is_refused(rate: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rate):
        small("transformer", **{rate: value})


def test_heads_that_do_not_divide_are_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError) as caught:
        small("transformer", n_embd=12, n_head=5)
    assert "1, 2, 3, 4, 6, 12 heads" in caught.value.valid
    small("lstm", n_embd=12, n_head=5)  # heads mean nothing here, so they refuse nothing


@pytest.mark.parametrize("name", ["transformer", "mlp"])
def test_weights_beyond_any_memory_are_refused_in_words(name: str) -> None:
    with pytest.raises(ConfigError, match="fit in memory"):
        build(small(name, n_embd=LARGEST_SIZE, block_size=LARGEST_SIZE), seed=0)


@every_model
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(name: str) -> None:
    first, again, other = (build(small(name), seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert name == "bigram" or any(not torch.equal(first[key], other[key]) for key in first)


def test_the_same_seed_gives_the_same_weights_for_every_backend() -> None:
    states = [build(small("transformer", attention=backend), seed=5).state_dict() for backend in backends()]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[key], states[0][key]) for key in state)


@every_model
def test_building_leaves_the_callers_random_numbers_alone(name: str) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build(small(name), seed=9)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.cuda
def test_building_leaves_the_gpus_random_numbers_alone_and_stays_on_the_cpu() -> None:
    torch.cuda.manual_seed(1)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(1)
    with torch.device("cuda"):
        model = build(small("transformer"), seed=9)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
    plain = build(small("transformer"), seed=9).state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in model.state_dict().items())


@every_model
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_ids_become_logits_of_the_promised_shape(name: str, data: st.DataObject) -> None:
    vocabulary, context = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20))
    batch, positions = data.draw(st.integers(1, 5)), data.draw(st.integers(1, context))
    layers = data.draw(st.integers(1, 6))
    config = small(name, vocab_size=vocabulary, block_size=context, n_layer=layers)
    logits = build(config, seed=0)(some_ids(config, batch, positions))
    assert logits.shape == (batch, positions, vocabulary)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@every_model
def test_a_sequence_longer_than_the_context_is_refused(name: str) -> None:
    config = small(name)
    model = build(config, seed=0)
    model(some_ids(config, 2, config.block_size))
    with pytest.raises(ConfigError) as caught:
        model(some_ids(config, 2, config.block_size + 1))
    assert "context of 8" in caught.value.wanted
    assert "9 positions" in caught.value.found
    assert "1 to 8" in caught.value.valid


def assert_causal(model: nn.Module, ids: Tensor, changed: Tensor, seen: int) -> None:
    """Logits of the first `seen` positions must not know what follows, nor whether anything does."""
    ids_with_another_future = torch.cat([ids[:, :seen], changed[:, seen:]], dim=1)
    with torch.no_grad():
        past = model(ids)[:, :seen]
        torch.testing.assert_close(model(ids_with_another_future)[:, :seen], past, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(model(ids[:, :seen]), past, rtol=1e-5, atol=1e-5)


@every_model
@settings(deadline=None, max_examples=20)
@given(seen=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_changing_the_future_changes_no_past_logit(name: str, seen: int, seed: int) -> None:
    config = small(name)
    model = trained_looking(build(config, seed=0)).eval()
    assert_causal(model, some_ids(config, 3, 8, seed), some_ids(config, 3, 8, seed + 1), seen)


@every_backend
def test_changing_the_future_changes_no_past_logit_for_any_backend(backend: str) -> None:
    skip_unless_it_runs(backend)
    config = small("transformer", block_size=16, attention=backend)
    model = trained_looking(build(config, seed=0)).eval()
    for seen in range(1, 17):
        assert_causal(model, some_ids(config, 3, 16), some_ids(config, 3, 16, seed=1), seen)


@every_model
def test_the_items_of_a_batch_do_not_see_each_other(name: str) -> None:
    config = small(name)
    model = trained_looking(build(config, seed=0)).eval()
    ids = some_ids(config, 4, 8)
    with torch.no_grad():
        together = model(ids)
        for item in range(4):
            torch.testing.assert_close(model(ids[item : item + 1])[0], together[item], rtol=1e-5, atol=1e-5)


@every_model
def test_every_parameter_takes_part(name: str) -> None:
    config = small(name)
    model = trained_looking(build(config, seed=0))
    logits, targets = model(some_ids(config, 4, 8)), some_ids(config, 4, 8, seed=1)
    torch.autograd.backward(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert count_parameters(model) == sum(value.numel() for value in model.state_dict().values())


@every_model
def test_weights_carried_to_another_model_carry_its_logits(name: str) -> None:
    config = small(name)
    model, other = trained_looking(build(config, seed=0)), build(config, seed=1)
    other.load_state_dict(model.state_dict())
    ids = some_ids(config, 3, 8)
    assert torch.equal(other(ids), model(ids))


def dropped_and_plain(config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """Return a model with dropout and one without, of the same weights."""
    dropped = trained_looking(build(config, seed=0))
    plain = trained_looking(build(dataclasses.replace(config, dropout=0.0, attention_dropout=0.0), seed=0))
    return dropped, plain


@every_model
def test_dropout_acts_in_training_alone(name: str) -> None:
    config = small(name, dropout=0.5)
    dropped, plain = dropped_and_plain(config)
    ids = some_ids(config, 3, 8)
    assert torch.equal(dropped.eval()(ids), plain(ids))
    dropped.train()
    assert torch.equal(dropped(ids), dropped(ids)) == (name == "bigram")


@pytest.mark.parametrize("name", [name for name in models() if name != "bigram"])
def test_with_all_embeddings_dropped_the_ids_no_longer_matter(name: str) -> None:
    config = small(name, dropout=1 - 1e-12)
    model = trained_looking(build(config, seed=0))
    assert torch.equal(model(some_ids(config, 3, 8)), model(some_ids(config, 3, 8, seed=1)))


@every_backend
def test_both_dropouts_are_off_in_evaluation_for_every_backend(backend: str) -> None:
    skip_unless_it_runs(backend)
    config = small("transformer", dropout=0.5, attention_dropout=0.5, attention=backend)
    dropped, plain = dropped_and_plain(config)
    ids = some_ids(config, 3, 8)
    assert torch.equal(dropped.eval()(ids), plain(ids))


def test_attention_dropout_acts_in_training() -> None:
    config = small("transformer", attention_dropout=0.5, attention="manual")
    model = trained_looking(build(config, seed=0))
    ids = some_ids(config, 3, 8)
    assert not torch.equal(model(ids), model(ids))


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_under_autocast_stays_near_the_step_in_float32(name: str, dtype: torch.dtype) -> None:
    config = small(name)
    model = trained_looking(build(config, seed=0))
    ids = some_ids(config, 4, 8)
    exact = model(ids)
    with torch.autocast("cpu", dtype=dtype):
        logits = model(ids)
        torch.autograd.backward(F.cross_entropy(logits.flatten(0, 1), ids.flatten()))
    assert (logits.float() - exact).abs().max() <= 0.05 * exact.abs().max()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_four_words_are_learned_as_far_as_the_model_can_see(name: str) -> None:
    """Words axb, cxd, exf, gxh: BOS leads to four letters, and only what stood before x tells what follows.

    So the least loss a position is ln 4 / 4 for a model with a memory and 2 ln 4 / 4 for the Bigram, and no
    model may fall below it: that one would have seen the future.
    """
    targets = torch.tensor([[1, 9, 2, 0], [3, 9, 4, 0], [5, 9, 6, 0], [7, 9, 8, 0]])
    ids = F.pad(targets[:, :-1], (1, 0))
    least = math.log(4) / 4 * (2 if name == "bigram" else 1)

    model = build(small(name, block_size=4, vocab_size=10), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.2 if name == "bigram" else 0.02, weight_decay=0.0)
    for _ in range(150):
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert least - 1e-4 <= loss.item() < least + 0.02
