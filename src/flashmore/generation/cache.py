"""Decoders: a model's state for a batch of sequences, with a KV cache if the model has one.

Shape letters: B batch, T positions, C channels, V vocabulary, L layers.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from flashmore.models.config import ModelConfig
from flashmore.models.kv_cache import InOrder, attend_anywhere, attend_in_order
from flashmore.specs import model_spec


class Decoder:
    """Sequences of equal length, recomputed as a whole at every step by a model in evaluation mode.

    A decoder can start anew as often as needed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        # n-grams have no parameters.
        self.device = next(model.parameters(), torch.empty(0)).device
        self._ids = torch.empty(0)
        self.stride = 1
        """By how many positions to move the window of a long text, once the context is full."""

    def start(self, ids: Tensor) -> Tensor:
        """Start with ids (B, T) int64; returns the logits of the last position, (B, V)."""
        self._ids = ids
        logits: Tensor = self.model(ids)[:, -1]  # (B, T, V) -> (B, V)
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
    """The same with a KV cache: a step computes only one position.

    Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need"
    (https://arxiv.org/abs/1911.02150), section 2.4.1. Entries are written once and never move. Those of
    position t of sequence b of B are 2·t·B + b, its key, and B further its value, so that attention reads the
    cache in place. From the first step that repeats or drops sequences, each has lists of places instead:
    they share prefixes and are dropped without copying, a simplified form of Kwon et al. 2023
    (https://arxiv.org/abs/2309.06180), section 4. The memory grows as needed and is kept for the next start,
    because the first write to a page takes longer than those that follow.

    The model has `prefill`, `step` and `step_of_one` as `Transformer` has them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._config: ModelConfig = self.model.config
        self.stride = max(1, self._config.block_size // 2)
        sizes = (self._config.n_layer, 0, self._config.n_embd)
        self._cache = next(model.parameters()).new_empty(sizes)  # (L, N, C)
        self._kept = self._cache.view(
            self._config.n_layer, self._config.block_size, 2, 0, self._config.n_embd
        )
        """The first entries in order, (L, T, 2, B, C)."""
        self._in_order = InOrder(self._kept, self._config.n_head)
        self._places: Tensor | None = None  # (2, T, B) int64, entries of each position of each sequence
        self._length = self._used = 0  # T; entries in use

    @cached_property
    def _step(self) -> Callable[..., Tensor]:
        return self.model.step()  # type: ignore[no-any-return]

    @cached_property
    def _step_of_one(self) -> Callable[..., Tensor]:
        return self.model.step_of_one()  # type: ignore[no-any-return]

    def start(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        (count, self._length), context = ids.shape, self._config.block_size
        self._places, self._used = None, 0
        entries = self._entries(2 * context * count)
        if self._kept.size(3) != count:
            self._kept = entries.view(len(entries), context, 2, count, -1)
            self._in_order = InOrder(self._kept, self._config.n_head)
        self._used = 2 * ids.numel()
        # Some sequences at a time, so that their activations stay in the CPU's caches.
        ways = max(1, ids.numel() * self._config.n_embd // _NUMBERS)
        parts = zip(ids.chunk(ways), self._kept.chunk(ways, dim=3), strict=True)
        return torch.cat([self.model.prefill(*part) for part in parts])  # (B, V)

    def extend(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """As in `Decoder`."""
        self._length += 1
        if rows is None and self._places is None:
            self._used += 2 * len(ids)
            if len(ids) == 1:
                return self._step_of_one(ids, self._length, self._in_order)
            kept = self._in_order.up_to(self._length)
            attends = [
                partial(attend_in_order, place=place, keys=keys, values=values)
                for place, keys, values in kept
            ]
            return self._step(ids, self._length, attends)
        if self._places is None:
            places = torch.arange(self._used, device=ids.device).view(self._length - 1, 2, -1)
            self._places = places.transpose(0, 1)  # (2, T, B)
        before = self._places if rows is None else self._places[:, :, rows]
        entries = self._entries(self._used + 2 * len(ids))
        new = torch.arange(self._used, entries.size(1), device=ids.device).view(2, 1, -1)  # (2, 1, B)
        self._places, self._used = torch.cat((before, new), dim=1), entries.size(1)
        attend = partial(attend_anywhere, places=self._places, n_head=self._config.n_head)
        return self._step(ids, self._length, [partial(attend, kept=kept) for kept in entries])

    def _entries(self, count: int) -> Tensor:
        """The first entries, (L, count, C), of which the used ones are kept."""
        if count > self._cache.size(1):
            entries = max(count, 2 * self._cache.size(1))
            grown = self._cache.new_empty(len(self._cache), entries, self._cache.size(2))
            grown[:, : self._used] = self._cache[:, : self._used]
            self._cache, self._kept = grown, self._kept[:, :, :, :0]
        return self._cache[:, :count]


def decoder_for(model: nn.Module) -> Decoder:
    """The fastest decoder for a model in evaluation mode."""
    config = getattr(model, "config", None)
    if isinstance(config, ModelConfig) and model_spec(config.model).kv_cache:
        return CachedDecoder(model)
    return Decoder(model)
