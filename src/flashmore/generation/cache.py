"""Decoders: a model's state for a batch of sequences, with a KV cache if the model has one.

Shape letters: B batch, T positions, C channels, V vocabulary, L layers.
"""

from collections.abc import Callable
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
"""About the size of the hidden states, B × T × C, of sequences that are prefilled together."""


class CachedDecoder(Decoder):
    """The same with a KV cache for at most `most` sequences: a step computes only one position.

    Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need"
    (https://arxiv.org/abs/1911.02150), section 2.4.1. Entries are written once and never move. Position t of
    sequence b of B is entry t·B + b, so that attention reads the cache in place. From the first step that
    repeats or drops sequences, each has a list of places instead: they share prefixes and are dropped without
    copying, a simplified form of Kwon et al. 2023 (https://arxiv.org/abs/2309.06180), section 4.

    The model has `prefill`, `steps` and `step` as `Transformer` has them.
    """

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__(model)
        config: ModelConfig = self._model.config
        self._context = config.block_size
        sizes = (config.n_layer, most * self._context, 2 * config.n_embd)
        self._cache = next(model.parameters()).new_empty(sizes)  # (L, N, 2C)
        self._in_order = self._cache[:, :0].unsqueeze(2)[:, :, :0]  # (L, T, B, 2C), the same entries
        self._step: Callable[[Tensor, int], Tensor] | None = None  # for B sequences in order
        self._places: Tensor | None = None  # (T, B) int64, entry of each position of each sequence
        self._length = self._used = 0  # T; entries in use

    def start(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        count, self._length = ids.shape
        self._places, self._used = None, ids.numel()
        if self._in_order.size(2) != count:
            entries = self._cache[:, : self._context * count]
            self._in_order = entries.view(len(entries), self._context, count, entries.size(2))
            self._step = None
        # Some sequences at a time, so that their activations stay in the CPU's caches.
        ways = max(1, ids.numel() * self._model.config.n_embd // _NUMBERS)
        parts = zip(ids.chunk(ways), self._in_order.chunk(ways, dim=2), strict=True)
        return torch.cat([self._model.prefill(*part) for part in parts])  # (B, V)

    def extend(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """As in `Decoder`."""
        self._length += 1
        first, self._used = self._used, self._used + len(ids)
        if rows is None and self._places is None:
            if self._step is None:
                self._step = self._model.steps(self._in_order)
            return self._step(ids, self._length)
        if self._places is None:
            self._places = torch.arange(first, device=ids.device).view(self._length - 1, -1)  # (T, B)
        before = self._places if rows is None else self._places[:, rows]
        new = torch.arange(first, self._used, device=ids.device).unsqueeze(0)  # (1, B)
        self._places = torch.cat((before, new))
        logits: Tensor = self._model.step(ids, self._cache[:, : self._used], self._places)  # (B, V)
        return logits


def decoder_for(model: nn.Module, most: int) -> Decoder:
    """The fastest decoder for a model in evaluation mode and at most `most` sequences."""
    config = getattr(model, "config", None)
    if isinstance(config, ModelConfig) and model_spec(config.model).kv_cache:
        return CachedDecoder(model, most)
    return Decoder(model)
