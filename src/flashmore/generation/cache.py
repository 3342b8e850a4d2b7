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
        """Start with ids (B, T) int64; returns the logits of the last position, (B, V)."""
        self._ids = ids
        logits: Tensor = self._model(ids)[:, -1]  # (B, T, V) -> (B, V)
        return logits

    def extend(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """Extend by one position with ids (B,) int64; returns logits (B, V).

        `rows`, (B,) int64, are indices of the sequences to extend, which may repeat; None extends each once.
        """
        before = self._ids if rows is None else self._ids[rows]
        return self.start(torch.cat((before, ids.unsqueeze(1)), dim=1))  # (B, T + 1) -> (B, V)


_NUMBERS = 2**16
"""Most numbers in the hidden state of the sequences that are prefilled together, if they are several."""


class CachedDecoder(Decoder):
    """The same with a KV cache for at most `most` sequences: a step computes only one position.

    Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need"
    (https://arxiv.org/abs/1911.02150), section 2.4.1. Entries are written once and never move. Sequences that
    branch or end have a list of places each, so that they share prefixes and are dropped without copying, a
    simplified form of Kwon et al. 2023 (https://arxiv.org/abs/2309.06180), section 4. Until then the places
    follow from position and sequence, and nothing has to be gathered.

    The model has `prefill` and `step` as `Transformer` has them.
    """

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__(model)
        config: ModelConfig = self._model.config
        sizes = (config.n_layer, most * config.block_size, 2 * config.n_embd)
        self._cache = next(model.parameters()).new_empty(sizes)  # (L, N, 2C)
        self._places: Tensor | None = None  # (T, B) int64, cache row of each position of each sequence
        self._used = self._length = 0  # rows in use; T

    def start(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        self._places, self._used, self._length = None, ids.numel(), ids.size(1)
        # Some sequences at a time, so that their activations stay in the CPU's caches.
        some = max(1, _NUMBERS // (ids.size(1) * self._model.config.n_embd))
        ways = -(-len(ids) // some)
        parts = zip(ids.chunk(ways), self._in_order(len(ids)).chunk(ways, dim=2), strict=True)
        return torch.cat([self._model.prefill(*part) for part in parts])  # (B, V)

    def extend(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """As in `Decoder`."""
        if rows is not None:
            if self._places is None:
                self._places = torch.arange(self._used, device=ids.device).view(self._length, -1)  # (T, B)
            self._places = self._places[:, rows]
        first, self._used = self._used, self._used + len(ids)
        self._length += 1
        if self._places is not None:
            new = torch.arange(first, self._used, device=ids.device).unsqueeze(0)  # (1, B)
            self._places = torch.cat((self._places, new))
        cache = self._in_order(len(ids)) if self._places is None else self._cache
        logits: Tensor = self._model.step(ids, cache, self._length, self._places)  # (B, V)
        return logits

    def _in_order(self, count: int) -> Tensor:
        """The cache with position t of sequence b in row t·B + b: (L, T, B, 2C), T the context."""
        L, _, channels = self._cache.shape
        context: int = self._model.config.block_size
        return self._cache[:, : context * count].view(L, context, count, channels)


def decoder_for(model: nn.Module, most: int) -> Decoder:
    """The fastest decoder for a model in evaluation mode and at most `most` sequences."""
    config = getattr(model, "config", None)
    if isinstance(config, ModelConfig) and model_spec(config.model).kv_cache:
        return CachedDecoder(model, most)
    return Decoder(model)
