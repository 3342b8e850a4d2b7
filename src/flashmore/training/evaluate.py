"""The loss of a whole part of the data."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flashmore.data.batches import IGNORE, Sequences, take
from flashmore.data.windows import Windows
from flashmore.models.config import ModelConfig
from flashmore.training.loss import mean_loss
from flashmore.training.step import Precision

ITEMS_AT_ONCE = 1024
LARGEST_TENSOR = 2**24
"""Numbers in the logits of the windows that are evaluated at once: 64 MiB of float32."""


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
    """Everything once: ids (B, T) and targets (B, T)."""
    if isinstance(data, Windows):
        config = model.config
        assert isinstance(config, ModelConfig)
        widest = max(config.vocabulary_size, 4 * config.channels)
        at_once = max(1, LARGEST_TENSOR // (data.context * widest))
        for start in range(0, len(data.covering), at_once):
            yield data.at(data.covering[start : start + at_once])
        return
    for indices in torch.split(torch.arange(len(data.ids)), ITEMS_AT_ONCE):
        yield take(data, indices)
