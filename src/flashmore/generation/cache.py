"""Decoders: a model's state for a batch of sequences, with a KV cache if the model has one.

Shape letters: B batch, T positions, C channels, V vocabulary, L layers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from flashmore.models.config import ModelConfig
from flashmore.specs import model_spec


class Decoder:
    """Sequences of equal length, recomputed as a whole at every step by a model in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._ids = torch.empty(0)

    def start(self, ids: Tensor) -> Tensor:
        """Start with ids (B, T) int64; returns logits (B, T, V)."""
        self._ids = ids
        logits: Tensor = self._model(ids)  # (B, T, V)
        return logits

    def extend(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Extend by one position with ids (B,) int64; returns logits (B, V).

        `rows`, (B,) int64, are indices of the sequences to extend, which may repeat; None extends each once.
        """
        before = self._ids if rows is None else self._ids[rows]
        return self.start(torch.cat((before, ids.unsqueeze(1)), dim=1))[:, -1]  # (B, T + 1, V) -> (B, V)


class CachedDecoder(Decoder):
    """The same with a KV cache for at most `most` sequences: a step computes only one position.

    Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need"
    (https://arxiv.org/abs/1911.02150), section 2.4.1. Entries are written once and never move; each sequence
    has a list of places. So sequences share prefixes and are dropped without copying, a simplified form of
    Kwon et al. 2023 (https://arxiv.org/abs/2309.06180), section 4.

    The model has `prefill` and `step` as `Transformer` has them.
    """

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__(model)
        config: ModelConfig = self._model.config
        sizes = (config.n_layer, most * config.block_size, 2 * config.n_embd)
        self._cache = next(model.parameters()).new_empty(sizes)  # (L, N, 2C)
        self._places = torch.empty(0)  # (T, B) int64, cache row of each position of each sequence
        self._used = 0  # places in use

    def start(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        self._places = self._next_places(ids.T)  # (T, B)
        logits: Tensor = self._model.prefill(ids, self._cache, self._places)  # (B, T, V)
        return logits

    def extend(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """As in `Decoder`."""
        before = self._places if rows is None else self._places[:, rows]
        self._places = torch.cat((before, self._next_places(ids.unsqueeze(0))))
        logits: Tensor = self._model.step(ids, self._cache, self._places)  # (B, V)
        return logits

    def _next_places(self, ids: Tensor) -> Tensor:
        first, self._used = self._used, self._used + ids.numel()
        return torch.arange(first, self._used, device=ids.device).view(ids.shape)


def decoder_for(model: nn.Module, most: int) -> Decoder:
    """The fastest decoder for a model in evaluation mode and at most `most` sequences."""
    config = getattr(model, "config", None)
    if isinstance(config, ModelConfig) and model_spec(config.model).kv_cache:
        return CachedDecoder(model, most)
    return Decoder(model)
