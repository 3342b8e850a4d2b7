"""Attention alone, as called in a training step of the Transformer, to measure its share of the step."""

from collections.abc import Callable

import torch
from torch import Tensor

from flashmore.backends.contract import attention
from flashmore.benchmark.step.data import Task
from flashmore.training.step import precision_of


def attention_alone(backend: str, task: Task) -> Callable[[], object]:
    """Return a function that computes attention forward in every layer, then backward in every layer.

    Saved tensors stay in memory until their backward pass, as in a step. The call synchronises.

    Args:
        backend: name of a backend known to run here.
        task: sizes, precision and dropout.
    """
    precision = precision_of(task.config, task.device)
    layers = [_like_in_the_model(task) for _ in range(task.model_config.n_layer)]
    leaves = [leaf for q, k, v, _ in layers for leaf in (q, k, v)]
    cotangents = [cotangent for *_, cotangent in layers]
    dropout_p = task.model_config.attention_dropout

    def run() -> None:
        with precision():
            outs = [
                attention(q, k, v, backend=backend, causal=True, dropout_p=dropout_p) for q, k, v, _ in layers
            ]
        gradients = torch.autograd.grad(outs, leaves, cotangents)
        gradients[-1].flatten()[0].item()  # synchronises

    return run


def _like_in_the_model(task: Task) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the incoming gradient: (B, H, T, D), with the same memory layout as in the model."""
    model_config = task.model_config
    B, T, C, H = task.config.batch_size, model_config.block_size, model_config.n_embd, model_config.n_head
    dtype = getattr(torch, task.config.dtype)
    generator = torch.Generator().manual_seed(0)
    # q, k and v are slices of one matrix's rows, as the model's c_attn makes them.
    made = torch.randn(B, T, 3 * C, generator=generator).to(task.device, dtype)
    q, k, v = (
        # (B, T, C) -> (B, H, T, D)
        made[..., part * C : (part + 1) * C].view(B, T, H, C // H).transpose(1, 2).detach().requires_grad_()
        for part in range(3)
    )
    cotangent = torch.randn(B, T, C, generator=generator).to(task.device, dtype)
    return q, k, v, cotangent.view(B, T, H, C // H).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)
