"""How a model is built.

Every model is an `nn.Module` made from a `ModelConfig` and keeps one contract:

- `forward(ids)` takes ids (B, T) int64 with 1 <= T <= context and returns logits (B, T, V);
- it is causal: the logits at position t depend on the ids at positions 0 to t alone;
- its weights start from PyTorch's own initialisation, as makemore leaves them, unless `start` names another;
- dropout acts in training alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from flashmore.errors import ConfigError
from flashmore.models.config import ModelConfig
from flashmore.specs import model_spec


def build(config: ModelConfig, seed: int) -> nn.Module:
    """Make a model on the CPU whose initial weights depend on the sizes and the seed alone.

    The attention backend and the device play no part: the same seed gives the same weights for all of them.
    The caller's random numbers, on every device, go on as if nothing had been drawn.

    Raises:
        ConfigError: the weights do not fit in memory.
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the accelerators too, and fork_rng restores only what it is told of
        torch.default_generator.manual_seed(seed)
        try:
            return _make(config)
        except RuntimeError as error:
            raise ConfigError(
                "a model whose weights fit in memory",
                f"{config.n_layer} layers of {config.n_embd} channels, context {config.block_size}",
                "fewer channels, fewer layers, or shorter items",
            ) from error


def _make(config: ModelConfig) -> nn.Module:
    made: nn.Module = model_spec(config.model).load()(config)
    return made


class _WithoutValues(TorchFunctionMode):
    """Tensors are made on the meta device, and nothing is written into them: that would import PyTorch's
    decompositions, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name: str = getattr(func, "__name__", "")
        given = kwargs or {}
        if name.endswith("_") and not name.endswith("__"):  # in place, by PyTorch's convention
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def layout(config: ModelConfig) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor of a model's `state_dict()`, without making any."""
    with torch.device("meta"), _WithoutValues():
        tensors = _make(config).state_dict()
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that training changes, embeddings and output layer included."""
    return sum(parameter.numel() for parameter in model.parameters())
