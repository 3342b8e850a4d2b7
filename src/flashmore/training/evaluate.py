"""The loss of a whole part of the data."""

from functools import partial

import torch
from torch import nn

from flashmore.data.batches import IGNORE
from flashmore.memory import largest_batch
from flashmore.models.config import ModelConfig
from flashmore.training.dataset import Dataset
from flashmore.training.step import Precision, mean_loss


@torch.no_grad()
def evaluate(model: nn.Module, data: Dataset, precision: Precision) -> float:
    """Mean loss in nats per character over all of `data`, in evaluation mode, within the free memory.

    The sum over characters divided by their number: a mean of batch means would overweight short batches.
    """
    config = model.config
    assert isinstance(config, ModelConfig)
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    characters = 0
    for batch in data.evaluation(partial(largest_batch, config)):
        real = int((batch.targets != IGNORE).sum())
        with precision():
            loss = mean_loss(model(batch.ids), batch.targets)
        total += loss.cpu().double() * real  # not every device has float64
        characters += real
    model.train(was_training)
    return (total / characters).item()
