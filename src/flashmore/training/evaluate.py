"""The loss of a whole part of the data."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flashmore.data.batches import IGNORE, Sequences, take
from flashmore.data.windows import Windows
from flashmore.memory import largest_batch
from flashmore.models.config import ModelConfig
from flashmore.training.loss import mean_loss
from flashmore.training.step import Precision


@torch.no_grad()
def evaluate(model: nn.Module, data: Sequences | Windows, precision: Precision) -> float:
    """Mean loss in nats a character over all of `data`, in evaluation mode.

    The sum over characters divided by their number: a mean of batch means would weigh short batches more.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    characters = 0
    for ids, targets in _batches(data, model):
        real = int((targets != IGNORE).sum())
        with precision():
            loss = mean_loss(model(ids), targets)
        total += loss.cpu().double() * real  # not every device has float64
        characters += real
    model.train(was_training)
    return (total / characters).item()


def _batches(data: Sequences | Windows, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Everything once: ids (B, T) and targets (B, T), within the memory that `largest_batch` allows.

    Items come sorted by their lengths and cut to the longest of their batch, which has none of less than half
    of that: one long item among many short ones costs one long row.
    """
    config = model.config
    assert isinstance(config, ModelConfig)
    if isinstance(data, Windows):
        at_once = largest_batch(config, data.context)
        for start in range(0, len(data.covering), at_once):
            yield data.at(data.covering[start : start + at_once])
        return
    lengths, order = data.lengths.cpu().sort(descending=True, stable=True)
    start = 0
    while start < len(order):
        longest = int(lengths[start])
        at_least_half = int((2 * lengths >= longest).sum())
        stop = min(at_least_half, start + largest_batch(config, longest))
        ids, targets = take(data, order[start:stop])
        yield ids[:, :longest], targets[:, :longest]
        start = stop
