"""What a step costs a rank: counted by hand for a small model, and sent by real ranks."""

import sys
from dataclasses import replace
from typing import Any

import pytest

from flashmore.config import PRESETS, Preset, TrainConfig
from flashmore.errors import ConfigError
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build, count_parameters, parameters_of
from flashmore.parallel import Ranks
from flashmore.training.estimate import Cost, Hardware, cost_of

MODEL = ModelConfig("transformer", vocab_size=10, block_size=8, n_layer=2, n_head=2, n_embd=4)
EMBEDDINGS = 10 * 4 + 8 * 4
"""Tokens, positions."""
BLOCK = (4 + 4) + (4 * 12 + 12) + (4 * 4 + 4) + (4 + 4) + (4 * 16 + 16) + (16 * 4 + 4)
"""Norm, queries with keys and values, projection, norm, MLP."""
P = EMBEDDINGS + 2 * BLOCK + (4 + 4) + 4 * 10
PER_TOKEN = 6 * (P - EMBEDDINGS) + 12 * 2 * 8 * 4
AGAIN = 2 * 2 * BLOCK + 4 * 2 * 8 * 4
"""The forward pass of the blocks, and of their attention."""
OPTIONS: dict[str, Any] = {
    "preset": "makemore", "batch_size": 16, "parallel": "ddp", "speedups": "none", "optimizer": "adamw",
}  # fmt: skip


def cost(ranks: int = 4, model: ModelConfig = MODEL, **options: Any) -> Cost:
    return cost_of(TrainConfig(**OPTIONS | options), model, Ranks(0, ranks), tokens=100.0)


@pytest.mark.parametrize("tied", [False, True])
def test_the_parameters_are_those_of_the_built_model(tied: bool) -> None:
    config = replace(MODEL, tie_weights=tied, bias=not tied)
    assert parameters_of(config) == count_parameters(build(config, 0))
    assert parameters_of(MODEL) == P


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("gpt2-124m", 124_439_808),
        ("gpt2-355m", 354_823_168),
        ("gpt2-774m", 774_030_080),
        ("gpt2-1558m", 1_557_611_200),
    ],
)
def test_the_presets_have_the_parameters_of_gpt2(preset: Preset, parameters: int) -> None:
    sizes = {name: PRESETS[preset][name] for name in ("block_size", "n_layer", "n_head", "n_embd")}
    # GPT-2 itself has biases and no unused ids.
    config = ModelConfig("transformer", vocab_size=50_257, bias=True, tie_weights=True, **sizes)
    assert parameters_of(config) == parameters


def test_the_memory_of_a_copy_is_counted_by_hand() -> None:
    assert cost().memory == {
        "weights": 4 * P,
        "gradients": 4 * P,
        "optimizer": 8 * P,
        "activations": 4 * 4 * 8 * (30 * 2 * 4 + 4 * 10),  # rows, positions, per position
    }


def test_the_memory_of_a_share_is_counted_by_hand() -> None:
    assert cost(parallel="fsdp").memory == {
        "weights": P,
        "gradients": P,
        "optimizer": 2 * P,
        "gathered": 4 * P,  # the model has two blocks
        "whole gradients": 4 * BLOCK,
        "activations": 4 * 4 * 8 * (30 * 2 * 4 + 4 * 10),
    }
    assert cost(parallel="fsdp").checkpoint == 12 * P


def test_what_needs_less_memory_is_counted_so() -> None:
    checkpointed = cost(activation_checkpointing=True).memory["activations"]
    assert checkpointed == 4 * 4 * 8 * (2 * 4 + 30 * 4 + 4 * 10)
    assert cost(grad_accum=4).memory["activations"] == cost().memory["activations"] / 4
    assert cost(parallel="fsdp", grad_accum=2).memory["whole gradients"] == 4 * P
    matrices = 2 * (4 * 12 + 4 * 4 + 2 * 4 * 16)
    assert cost(optimizer="muon").memory["optimizer"] == 8 * P - 4 * matrices
    assert cost(optimizer="muon").checkpoint == 12 * P - 4 * matrices
    offloaded = cost(parallel="fsdp", cpu_offload=True)
    assert offloaded.offloaded == {"weights": P, "gradients": P, "optimizer": 2 * P}
    assert not offloaded.offloaded.keys() & offloaded.memory.keys()


@pytest.mark.parametrize(
    ("options", "ranks", "sent", "messages"),
    [
        ({}, 1, 0, 0),
        ({}, 2, 4 * P, 2),
        ({}, 4, 2 * 3 / 4 * 4 * P, 6),
        ({"speedups": ("compile",)}, 4, 2 * 3 / 4 * 4 * (P + 1), 6),
        ({"slices": 8}, 4, (2 + 1) * 3 / 4 * 4 * (P + 1), 6),
        ({"parallel": "fsdp"}, 4, 3 / 4 * 4 * (2 * P + 2 * BLOCK), 3 * (5 + 3)),
        ({"parallel": "fsdp", "device": "cpu"}, 4, 3 / 4 * 4 * (3 * P + 2 * BLOCK), 3 * (5 + 6)),
        ({"parallel": "fsdp", "grad_accum": 2}, 4, 3 / 4 * 4 * (3 * P + 4 * BLOCK), 3 * (2 * 5 + 3)),
    ],
)
def test_what_is_sent_is_counted_by_hand(
    options: dict[str, Any], ranks: int, sent: float, messages: int
) -> None:
    found = cost(ranks, **options)
    assert (found.sent, found.messages) == (sent, messages)


def test_large_models_are_sent_in_buckets() -> None:
    large = replace(MODEL, n_embd=1024, n_head=2)
    buckets = 1 + -(-(4 * parameters_of(large) - 2**20) // (25 * 2**20))
    assert cost(2, large).messages == 2 * buckets > 6


def test_arithmetic_is_counted_by_hand() -> None:
    assert cost(1).flop == 100 * PER_TOKEN
    assert cost(4).flop == 25 * PER_TOKEN
    assert cost(1, activation_checkpointing=True).flop == 100 * (PER_TOKEN + AGAIN)
    tied = cost(1, replace(MODEL, tie_weights=True))
    assert tied.flop == cost(1).flop


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, 2 / 3),
        ({"grad_accum": 2}, 1 / 3),
        ({"parallel": "fsdp", "grad_accum": 2}, 1),
        ({"activation_checkpointing": True}, 3 / 4),
        ({"slices": 4}, 0),
        ({"speedups": ("compile",)}, 0),
    ],
)
def test_what_is_sent_after_the_gradient_cannot_be_hidden(options: dict[str, Any], share: float) -> None:
    assert cost(**options).beside == share


def test_the_time_is_predicted_as_documented() -> None:
    one = Cost({}, {}, 0, flop=6e9, beside=2 / 3, sent=1e9, messages=10)
    seconds = one.seconds(Hardware(tflops=0.003, bandwidth_gb_s=2, latency_us=1000, overlap=0.5))
    assert (seconds.compute, seconds.communication) == pytest.approx((2, 0.51))
    assert (seconds.hidden, seconds.step) == pytest.approx((0.255, 2.255))
    slow = one.seconds(Hardware(tflops=0.003, bandwidth_gb_s=0.1, latency_us=0, overlap=1))
    assert slow.hidden == pytest.approx(2 * 2 / 3)  # no longer than the backward pass


def test_what_cannot_be_shared_equally_is_refused() -> None:
    with pytest.raises(ConfigError, match="12 or 18"):
        cost(6)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the counters of Linux' loopback device")
def test_ranks_send_as_many_bytes_as_counted() -> None:
    from scaling import GPT2, SENDING, Job, counted, workers

    small = {"n_layer": 2, "n_embd": 128, "vocab_size": 4096, "block_size": 32, "batch_size": 4}
    jobs = [Job({**job.options, **small}) for job in SENDING.values()]
    assert len(jobs) > 4
    with workers() as started:
        for job in jobs:
            changed = {name: value for name, value in job.options.items() if GPT2.get(name) != value}
            assert started.sent(job) == pytest.approx(counted(job).sent, rel=0.05), changed
