"""What a model keeps of the sequences that generation goes on with, so that a step computes one position.

Shape letters: B batch, T positions, C channels, V vocabulary, L layers.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from flashmore.models.transformer import Transformer

_WORTH_KEEPING = 0.75
"""Share of the places in a cache that must be in use; below it, a copy costs less than what is saved."""


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


class CachedDecoder:
    """The Transformer with the keys and values of all earlier positions: a KV cache.

    Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need"
    (https://arxiv.org/abs/1911.02150), section 2.4.1. Memory is taken once. Letting go of a sequence, or
    going on with it twice, takes a copy of all others: those let go of are therefore computed along until
    there are enough of them.

    Args:
        model: in evaluation mode.
        most: the largest batch B to come.
    """

    def __init__(self, model: Transformer, most: int) -> None:
        self._model = model
        config = model.config
        # Positions before the batch: those of a layer that are filled, and a new one, lie in whole pieces.
        self._cache = model.wte.weight.new_empty(config.layers, 2, config.context, most, config.channels)
        self._length = 0  # positions that are filled
        self._width = 0  # places that are filled, with what was dropped
        self._places = torch.empty(0)  # (B,) int64, where each sequence stands

    def start(self, ids: Tensor) -> Tensor:
        """As in `Decoder`."""
        self._width, self._length = ids.shape
        self._places = torch.arange(self._width, device=ids.device)
        return self._model.prefill(ids, self._filled())

    def extend(self, ids: Tensor, rows: Tensor | None = None) -> Tensor:
        """As in `Decoder`."""
        if rows is not None:
            self._places = self._places[rows]
            if len(rows) < _WORTH_KEEPING * self._width or not bool((rows.diff() > 0).all()):
                self._gather()
        self._length += 1
        if len(ids) == self._width:
            return self._model.step(ids, self._filled())
        every = ids.new_zeros(self._width)
        every[self._places] = ids
        return self._model.step(every, self._filled())[self._places]

    def _gather(self) -> None:
        """Copy the sequences that are left, or left twice, side by side."""
        before, self._width = self._filled(), len(self._places)
        for old, new in zip(before, self._filled(), strict=True):  # (2, T, B, C), a layer
            new.copy_(old.index_select(2, self._places))
        self._places = torch.arange(self._width, device=self._places.device)

    def _filled(self) -> Tensor:
        return self._cache[:, :, : self._length, : self._width]


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
    return CachedDecoder(model, most) if isinstance(model, Transformer) else PlainDecoder(model)
