"""The baseline for `resident`: a Dataset that builds one item at a time, with a DataLoader.

https://docs.pytorch.org/docs/stable/data.html
"""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flashmore.data.batches import IGNORE, Sequences
from flashmore.training.dataset import Batch, Form, ItemDataset


class LoadedDataset(ItemDataset):
    """The batches of an `ItemDataset`, loaded item by item and copied to the device.

    Args:
        data: the dataset.
    """

    def __init__(self, data: ItemDataset) -> None:
        super().__init__(data.sequences)
        self.order = data.order
        self._items = _Items(data.sequences)

    def batch(self, step: int, form: Form = "padded") -> Batch:
        """As in `flashmore.training.dataset.Dataset`, in rows."""
        loader = DataLoader(self._items, batch_sampler=[self.order.indices(step).tolist()])
        ids, targets = next(iter(loader))
        T = int((targets != IGNORE).sum(1).max()) if form == "trimmed" else ids.size(1)
        device = self.sequences.ids.device
        return Batch(ids[:, :T].to(device), targets[:, :T].to(device))


class _Items(Dataset[tuple[Tensor, Tensor]]):
    """Builds one item at a time in Python."""

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
