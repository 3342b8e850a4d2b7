"""A run goes on where its device or its attention kernel is missing; test_ahead.py: its compiler."""

from dataclasses import replace

import torch

from flashmore.config import TrainConfig
from flashmore.models.config import ModelConfig
from flashmore.training.corpus import read_corpus
from flashmore.training.resolve import Resolved, resolve_speed

SMALL = replace(
    TrainConfig(),
    optimizer="adamw",
    n_embd=16,
    n_head=2,
    n_layer=1,
    max_steps=4,
    eval_interval=2,
    log_interval=1,
    batch_size=8,
    device="cpu",
)
CPU = torch.device("cpu")


def here(config: TrainConfig, model_config: ModelConfig) -> Resolved:
    data = read_corpus(config).datasets(config, CPU).train
    return resolve_speed(config, model_config, CPU, data, replaceable=True)


def test_what_a_gpu_had_is_left_out_on_a_cpu_with_the_reasons() -> None:
    names = ("fused-adamw", "pad-vocab", "cuda-graph", "replay", "tf32")
    config = replace(SMALL, speedups=names, attention="cudnn")
    model_config = ModelConfig("transformer", 27, 16, n_layer=1, n_head=2, n_embd=16, attention="cudnn")
    resolved = here(config, model_config)
    assert resolved.config.speedups == ("fused-adamw",)
    assert resolved.model_config.attention != "cudnn"
    for name in ("pad-vocab", "cuda-graph", "replay", "tf32"):
        assert any(note.startswith(f"{name}, which this run used, is skipped: ") for note in resolved.notes)
    replaced = "cudnn attention, which this run used, is replaced: "
    assert any(note.startswith(replaced) for note in resolved.notes)
    again = here(replace(resolved.config, attention="manual"), model_config)
    assert again.notes == ("speed-ups: fused-adamw",)
