"""The baseline for `resident`: a Dataset that builds one item at a time, with a DataLoader.

https://docs.pytorch.org/docs/stable/data.html
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flashmore.data.batches import IGNORE, Sequences
from flashmore.training.dataset import WHOLE, Batch, Form, ItemDataset, Slice, rows_of, shaped


class LoadedDataset(ItemDataset):
    """The batches of an `ItemDataset`, loaded item by item and copied to the device."""

    def __init__(self, data: ItemDataset) -> None:
        assert isinstance(data.sequences, Sequences)
        super().__init__(data.sequences)
        self.order = data.order
        self._items = _Items(data.sequences)
        self._device = data.sequences.ids.device
        self._loaders: dict[Slice, tuple[int, Iterator[list[Tensor]]]] = {}
        """For each slice of a batch, a loader and the step that it comes to next."""

    def batch(self, step: int, form: Form = "padded", part: Slice = WHOLE) -> Batch:
        """As in `ItemDataset`; steps in order share one loader."""
        following, loader = self._loaders.get(part, (None, iter(())))
        if step != following:
            loader = iter(DataLoader(self._items, batch_sampler=self._indices(step, part)))
        self._loaders[part] = step + 1, loader
        ids, targets = (rows.to(self._device) for rows in next(loader))
        batch = shaped(ids, targets, (targets != IGNORE).sum(1), form)
        if part == WHOLE:
            return batch
        lengths = self.sequences.lengths
        characters = lengths[self.order.indices(step).to(lengths.device)].sum()
        return replace(batch, characters=characters)

    def to(self, device: torch.device) -> "LoadedDataset":
        """The same on another device."""
        return LoadedDataset(super().to(device))

    def _indices(self, step: int, part: Slice) -> Iterator[list[int]]:
        for following in count(step):
            indices = self.order.indices(following)
            yield indices[rows_of(len(indices), part)].tolist()


class _Items(Dataset[tuple[Tensor, Tensor]]):
    """Builds one item at a time in Python."""

    def __init__(self, sequences: Sequences) -> None:
        self._items = [
            row[:length].tolist()
            for row, length in zip(sequences.ids.cpu(), sequences.lengths.tolist(), strict=True)
        ]
        self._context = sequences.ids.size(1)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(self._context, dtype=torch.int64)
        targets = torch.full((self._context,), IGNORE, dtype=torch.int64)
        item = self._items[index]
        ids[: len(item)] = torch.tensor(item)
        targets[: len(item)] = torch.tensor([*item[1:], 0])
        return ids, targets
