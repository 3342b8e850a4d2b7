"""What a model keeps of the sequences that generation goes on with, so that a step computes one position.

Shape letters: B batch, T positions, C channels, V vocabulary, L layers.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from flashmore.models.config import ModelConfig
from flashmore.specs import model_spec


class Decoder(Protocol):
    """A model in the middle of a batch of sequences that are equally long."""

    def start(self, ids: Tensor) -> Tensor:
        """Begin with ids (B, T) int64: logits (B, T, V)."""
        ...

    def extend(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Go on by one position: logits (B, V).

        Args:
            ids: (B,) int64, what comes next.
            rows: (B,) int64, which sequences go on, as often as they occur here; None means each as it is.
        """
        ...


class CachingModel(Protocol):
    """A model that keeps keys and values, as `ModelSpec.kv_cache` promises; `Transformer` is one."""

    config: ModelConfig

    def prefill(self, ids: Tensor, cache: Tensor, places: Tensor) -> Tensor:
        """Ids (B, T) to logits (B, T, V), and what `step` needs of them into the cache."""
        ...

    def step(self, ids: Tensor, cache: Tensor, places: Tensor) -> Tensor:
        """The last ids alone, (B,), to logits (B, V)."""
        ...


class CachedDecoder:
    """A model with the keys and values of all earlier positions: a KV cache.

    Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need"
    (https://arxiv.org/abs/1911.02150), section 2.4.1. What a position leaves is written once and stays where
    it is; each sequence has a list of places. So sequences share what they began with, and are let go of,
    without a copy: the idea of Kwon et al. 2023 (https://arxiv.org/abs/2309.06180), section 4, in small.

    Args:
        model: in evaluation mode.
        most: the largest batch B to come.
    """

    def __init__(self, model: CachingModel, most: int) -> None:
        self._model = model
        config = model.config
        sizes = (config.n_layer, most * config.block_size, 2 * config.n_embd)
        parameter = next(cast(nn.Module, model).parameters())
        self._cache = parameter.new_empty(sizes)  # (L, N, 2C)
        self._places = torch.empty(0)  # (T, B) int64, where each position of each sequence stands
        self._used = 0  # places in use

    def start(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        self._places = self._next_places(ids.numel(), ids.device).view(ids.size(1), ids.size(0))  # (T, B)
        return self._model.prefill(ids, self._cache, self._places)

    def extend(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """As in `Decoder`."""
        before = self._places if rows is None else self._places[:, rows]
        self._places = torch.cat((before, self._next_places(len(ids), ids.device).unsqueeze(0)))
        return self._model.step(ids, self._cache, self._places)

    def _next_places(self, count: int, device: torch.device) -> Tensor:
        first, self._used = self._used, self._used + count
        return torch.arange(first, self._used, device=device)


class PlainDecoder:
    """Any other model: the whole sequences, computed anew at every step.

    Args:
        model: in evaluation mode; ids (B, T) to logits (B, T, V).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._ids = torch.empty(0)

    def start(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        self._ids = ids  # (B, T)
        logits: Tensor = self._model(ids)  # (B, T, V)
        return logits

    def extend(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """As in `Decoder`."""
        before = self._ids if rows is None else self._ids[rows]
        return self.start(torch.cat((before, ids.unsqueeze(1)), dim=1))[:, -1]  # (B, T + 1, V) -> (B, V)


def decoder_for(model: nn.Module, most: int) -> Decoder:
    """Give the fastest way to go on with a model that is in evaluation mode.

    Args:
        model: ids (B, T) to logits (B, T, V).
        most: the largest batch B to come.
    """
    config = getattr(model, "config", None)
    if isinstance(config, ModelConfig) and model_spec(config.model).kv_cache:
        return CachedDecoder(cast(CachingModel, model), most)
    return PlainDecoder(model)
