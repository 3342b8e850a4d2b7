from collections.abc import Callable

import pytest
import torch

from flashmore.errors import ConfigError, RunError
from flashmore.generation.load import load_model
from flashmore.memory import largest_batch
from flashmore.models.config import ModelConfig
from flashmore.runs import Checkpoint, Run, State


def test_best_comes_before_last(make_bigram: Callable[..., Run]) -> None:
    run = make_bigram([[0.5, 0.5], [0.5, 0.5]], "a", 4)
    run.save_checkpoint(Checkpoint({"logits": torch.full((2, 2), 1.0)}, {}, State(4, 10)))
    assert load_model(run, "cpu").state_dict()["logits"].unique().tolist() == [1.0]
    run.save_checkpoint(Checkpoint({"logits": torch.full((2, 2), 2.0)}, {}, State(5, 10, 2.5, 5)))
    run.save_checkpoint(Checkpoint({"logits": torch.full((2, 2), 1.0)}, {}, State(6, 10, 2.5, 5)))
    assert load_model(run, "cpu").state_dict()["logits"].unique().tolist() == [2.0]


def test_the_model_is_in_evaluation_mode(make_run: Callable[..., Run]) -> None:
    model = load_model(make_run("transformer", "ab", 4, dropout=0.9, attention_dropout=0.9), "cpu")
    assert not any(module.training for module in model.modules())
    ids = torch.tensor([[0, 1, 2]])
    assert torch.equal(model(ids), model(ids))


def test_a_backend_that_cannot_run_here_does_not_matter(make_run: Callable[..., Run]) -> None:
    models = [
        load_model(make_run("transformer", "ab", 4, attention=name), "cpu") for name in ("cudnn", "manual")
    ]
    ids = torch.tensor([[0, 1, 2]])
    assert torch.equal(models[0](ids), models[1](ids))


def test_loading_leaves_the_random_numbers_alone(make_run: Callable[..., Run]) -> None:
    run = make_run("mlp", "ab", 4)
    before = torch.random.get_rng_state()
    load_model(run, "cpu")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_run_without_a_checkpoint_is_named(make_run: Callable[..., Run]) -> None:
    run = make_run("bigram", "ab", 4)
    run.checkpoint(0).unlink()
    with pytest.raises(RunError, match="no checkpoint"):
        load_model(run, "cpu")


def test_weights_of_another_model_are_named(make_run: Callable[..., Run]) -> None:
    run = make_run("bigram", "ab", 4)
    run.save_checkpoint(Checkpoint({"logits": torch.zeros(4, 4)}, {}, State(1, 10)))
    with pytest.raises(RunError, match=r"logits of shape \(4, 4\) and torch.float32 instead of \(3, 3\)"):
        load_model(run, "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(make_run: Callable[..., Run], value: float) -> None:
    run = make_run("bigram", "ab", 4)
    run.save_checkpoint(Checkpoint({"logits": torch.full((3, 3), value)}, {}, State(1, 10)))
    with pytest.raises(RunError, match="logits"):
        load_model(run, "cpu")


@pytest.mark.parametrize("device", ["toaster", "cpu:-3"])
def test_a_device_that_is_not_here_is_named(make_run: Callable[..., Run], device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        load_model(make_run("bigram", "ab", 4), device)


def test_batches_are_bounded() -> None:
    config = ModelConfig("transformer", vocab_size=27, block_size=16, n_embd=64)
    assert largest_batch(config, config.block_size) * 16 * 256 * 4 <= 64 * 2**20
    assert largest_batch(config, config.block_size) > 1000
    deep = ModelConfig("transformer", vocab_size=27, block_size=16, n_embd=64, n_layer=100)
    assert largest_batch(deep, deep.block_size) * 16 * (2 * 100 * 64) * 4 <= 64 * 2**20
    assert largest_batch(ModelConfig("bigram", vocab_size=10**6, block_size=1001), 1001) == 1
    mlp = ModelConfig("mlp", vocab_size=27, block_size=500, n_embd=64)
    assert largest_batch(mlp, mlp.block_size) * 500 * (500 * 64) * 4 <= 64 * 2**20
