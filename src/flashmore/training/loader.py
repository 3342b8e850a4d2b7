"""Batches as people first write them: a Dataset that makes one item at a time, and a DataLoader around it.

https://docs.pytorch.org/docs/stable/data.html. It is what `resident` is held against.
"""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flashmore.data.batches import IGNORE, Sequences
from flashmore.training.batch import Batch


class Items(Dataset[tuple[Tensor, Tensor]]):
    """One item a time, built by Python from its ids."""

    def __init__(self, sequences: Sequences) -> None:
        self._items = [
            row[:length].tolist()
            for row, length in zip(sequences.ids.cpu(), sequences.lengths.tolist(), strict=True)
        ]
        self._context = sequences.ids.size(1)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(self._context, dtype=torch.int64)
        targets = torch.full((self._context,), IGNORE, dtype=torch.int64)
        item = self._items[index]
        ids[: len(item)] = torch.tensor(item)
        targets[: len(item)] = torch.tensor([*item[1:], 0])
        return ids, targets


def item_by_item(items: Items, indices: Tensor, device: torch.device, *, trim: bool) -> Batch:
    """The batch of these indices through a DataLoader: ids and targets (B, T)."""
    loader = DataLoader(items, batch_sampler=[indices.tolist()])
    ids, targets = next(iter(loader))
    T = int((targets != IGNORE).sum(1).max()) if trim else ids.size(1)
    return Batch(ids[:, :T].to(device), targets[:, :T].to(device))
