"""The optimizer and its learning rate."""

import math
from typing import Any

import torch
from torch import nn

from flashmore.config import TrainConfig
from flashmore.training.muon import muon_matrices

EPS = 1e-8
"""AdamW's epsilon."""
MUON_MOMENTUM = 0.95
ADAMW_MOMENTS, MUON_MOMENTS = ("exp_avg", "exp_avg_sq"), ("momentum_buffer",)
"""PyTorch's names of the optimizer state of each parameter. A checkpoint holds `MOMENT.PARAMETER` for each,
independent of the kind of step, and `step`, the number of AdamW updates."""


def optimizers_of(model: nn.Module, config: TrainConfig, *, fused: bool) -> list[torch.optim.Optimizer]:
    """AdamW for every parameter, as in makemore; or Muon for the blocks' matrices and AdamW for the rest.

    Loshchilov & Hutter 2019, https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html;
    https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html.

    Args:
        fused: use the fused AdamW kernel instead of a loop over parameters.
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
    """Whether weight decay applies to a parameter."""
    return config.decay_on == "all" or parameter.ndim > 1


def learning_rate_share(step: int, config: TrainConfig) -> float:
    """Learning rate of the update after `step` updates, as a fraction of the peak: warm-up, then schedule.

    The cosine is that of Loshchilov & Hutter 2017 (SGDR), without restarts.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.lr_schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
