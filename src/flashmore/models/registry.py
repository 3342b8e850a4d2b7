"""Building models.

Every model is an `nn.Module` built from a `ModelConfig` with this contract:

- `forward(ids)` takes ids (B, T) int64 with 1 <= T <= block_size and returns logits (B, T, V);
- it is causal: the logits at position t depend only on the ids at positions 0 to t;
- its weights have PyTorch's default initialisation, as in makemore, unless `init` names another;
- dropout applies only in training.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flashmore.errors import ConfigError
from flashmore.models.config import ModelConfig
from flashmore.specs import model_spec


def build(config: ModelConfig, seed: int) -> nn.Module:
    """Build a model on the CPU whose initial weights depend only on the sizes and the seed.

    The caller's generator state is unchanged on every device.

    Raises:
        ConfigError: the weights do not fit in memory.
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed accelerators, and fork_rng only restores the devices it is given
        torch.default_generator.manual_seed(seed)
        try:
            made: nn.Module = model_spec(config.model).load()(config)
            return made
        except RuntimeError as error:
            found = f"{config.n_layer} layers of {config.n_embd} channels, context {config.block_size}"
            valid = "fewer channels, fewer layers, or shorter items"
            raise ConfigError("a model whose weights fit in memory", found, valid) from error


class _WithoutValues(TorchFunctionMode):
    """Creates tensors on the meta device and skips in-place writes: these would import PyTorch's
    decompositions, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name: str = getattr(func, "__name__", "")
        given = kwargs or {}
        if name.endswith("_") and not name.endswith("__"):  # in place, by PyTorch's convention
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def without_values(config: ModelConfig) -> nn.Module:
    """A model on the meta device: its parameters have shapes, but no memory."""
    with torch.device("meta"), _WithoutValues():
        made: nn.Module = model_spec(config.model).load()(config)
    return made


def layout(config: ModelConfig) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor of a model's `state_dict()`, without allocating them.

    Tied weights have two names there.
    """
    tensors: dict[str, Tensor] = without_values(config).state_dict()
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def parameters_of(config: ModelConfig) -> int:
    """Number of trainable parameters of a model, which is not built; tied weights count once."""
    return count_parameters(without_values(config))


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters, including embeddings and output layer."""
    return sum(parameter.numel() for parameter in model.parameters())
