"""The KV cache, with which a generation step computes only one position.

Shape letters: B batch, T positions, C channels, V vocabulary, L layers.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from flashmore.models.config import ModelConfig
from flashmore.specs import model_spec


class Decoder(Protocol):
    """A model's state for a batch of sequences of equal length."""

    def start(self, ids: Tensor) -> Tensor:
        """Start with ids (B, T) int64; returns logits (B, T, V)."""
        ...

    def extend(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Extend by one position; returns logits (B, V).

        Args:
            ids: (B,) int64, the next ids.
            rows: (B,) int64, indices of the sequences to extend, which may repeat; None extends each once.
        """
        ...


class CachingModel(Protocol):
    """A model with `ModelSpec.kv_cache`, such as `Transformer`."""

    config: ModelConfig

    def prefill(self, ids: Tensor, cache: Tensor, places: Tensor) -> Tensor:
        """Map ids (B, T) to logits (B, T, V) and fill the cache for `step`."""
        ...

    def step(self, ids: Tensor, cache: Tensor, places: Tensor) -> Tensor:
        """Map only the last ids, (B,), to logits (B, V)."""
        ...


class CachedDecoder:
    """A model with a KV cache.

    Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need"
    (https://arxiv.org/abs/1911.02150), section 2.4.1. Entries are written once and never move; each sequence
    has a list of places. So sequences share prefixes and are dropped without copying, a simplified form of
    Kwon et al. 2023 (https://arxiv.org/abs/2309.06180), section 4.

    Args:
        model: in evaluation mode.
        most: the largest batch size B.
    """

    def __init__(self, model: CachingModel, most: int) -> None:
        self._model = model
        config = model.config
        sizes = (config.n_layer, most * config.block_size, 2 * config.n_embd)
        parameter = next(cast(nn.Module, model).parameters())
        self._cache = parameter.new_empty(sizes)  # (L, N, 2C)
        self._places = torch.empty(0)  # (T, B) int64, cache row of each position of each sequence
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
    """Any other model: recomputes the whole sequences at every step.

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
    """The fastest decoder for a model in evaluation mode.

    Args:
        model: ids (B, T) to logits (B, T, V).
        most: the largest batch size B.
    """
    config = getattr(model, "config", None)
    if isinstance(config, ModelConfig) and model_spec(config.model).kv_cache:
        return CachedDecoder(cast(CachingModel, model), most)
    return PlainDecoder(model)
