"""The optimizer and its learning rate."""

import math
from typing import Any

import torch
from torch import nn

from flashmore.config import TrainConfig
from flashmore.training.muon import muon_matrices

EPS = 1e-8
"""What AdamW adds to the root of the mean square."""
MUON_MOMENTUM = 0.95
ADAMW_MOMENTS, MUON_MOMENTS = ("exp_avg", "exp_avg_sq"), ("momentum_buffer",)
"""What the optimizers keep for every parameter, by PyTorch's names. A checkpoint holds `MOMENT.PARAMETER`
for each, whatever kind of step made the updates, and `step`, the number of AdamW's updates."""


def optimizers_of(model: nn.Module, config: TrainConfig, *, fused: bool) -> list[torch.optim.Optimizer]:
    """AdamW over every parameter, as makemore does it; or Muon for the matrices of the blocks beside it.

    Loshchilov & Hutter 2019, https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html;
    https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html.

    Args:
        fused: AdamW in one kernel, not in a loop over parameters.
    """
    matrices = muon_matrices(model) if config.optimizer == "muon" else {}
    rest = [parameter for name, parameter in model.named_parameters() if name not in matrices]
    decayed = [parameter for parameter in rest if is_decayed(parameter, config)]
    others = [parameter for parameter in rest if not is_decayed(parameter, config)]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=EPS,
        weight_decay=config.weight_decay,
        fused=fused,
        foreach=False,
    )
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(
        matrices.values(),
        lr=config.muon_learning_rate,
        weight_decay=config.weight_decay,
        momentum=MUON_MOMENTUM,
    )
    return [adamw, muon]


def is_decayed(parameter: nn.Parameter, config: TrainConfig) -> bool:
    """Whether weight decay acts on a parameter."""
    return config.decay_on == "all" or parameter.ndim > 1


def learning_rate_share(step: int, config: TrainConfig) -> float:
    """What the update that follows `step` updates takes of the highest learning rate: warm-up, then schedule.

    The cosine is that of Loshchilov & Hutter 2017 (SGDR), without restarts.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.lr_schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
