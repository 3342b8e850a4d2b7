"""The optimizer and its learning rate."""

import math

import torch
from torch import nn

from flashmore.training.recipe import Recipe


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over every parameter, as makemore does it.

    https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html
    """
    return torch.optim.AdamW(
        model.parameters(),
        lr=recipe.lr,
        betas=(recipe.beta1, recipe.beta2),
        eps=1e-8,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def learning_rate(step: int, recipe: Recipe) -> float:
    """The learning rate of the update that follows `step` updates: linear warm-up, then the schedule.

    The cosine is that of Loshchilov & Hutter 2017 (SGDR), without restarts.
    """
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / (recipe.warmup + 1)
    if recipe.schedule == "constant":
        return recipe.lr
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    share = recipe.lr_end + (1 - recipe.lr_end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return recipe.lr * share
