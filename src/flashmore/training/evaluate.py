"""The loss of a whole part of the data."""

import torch
from torch import nn

from flashmore.data.batches import IGNORE, Sequences, take
from flashmore.training.loss import mean_loss
from flashmore.training.step import Precision

ITEMS_AT_ONCE = 1024


@torch.no_grad()
def evaluate(model: nn.Module, sequences: Sequences, precision: Precision) -> float:
    """Mean loss in nats a character over all of `sequences`, in evaluation mode.

    The sum over characters divided by their number: a mean of batch means would weigh short batches more.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    characters = 0
    for indices in torch.split(torch.arange(len(sequences.ids)), ITEMS_AT_ONCE):
        ids, targets = take(sequences, indices)
        real = int((targets != IGNORE).sum())
        with precision():
            loss = mean_loss(model(ids), targets)
        total += loss.double().cpu() * real
        characters += real
    model.train(was_training)
    return (total / characters).item()
