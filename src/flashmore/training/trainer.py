"""A model with its optimizer and its data, that can make one step after the other."""

from typing import Any

import torch
from torch import Tensor

from flashmore.data.batches import BatchOrder, Sequences, take
from flashmore.data.windows import Windows
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.training.optimizers import adamw, learning_rate
from flashmore.training.recipe import Recipe
from flashmore.training.step import Step


class Trainer:
    """Model, optimizer and order of the data, all decided by the recipe's seed.

    Args:
        recipe: how to train.
        config: the model's sizes; `attention` names a backend that runs on `device`.
        data: what is learned, on `device`.
        device: where.
    """

    def __init__(
        self, recipe: Recipe, config: ModelConfig, data: Sequences | Windows, device: torch.device
    ) -> None:
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        torch.manual_seed(recipe.seed)  # dropout; the initial weights have a generator of their own
        self.recipe = recipe
        self.device = device
        self.model = build(config, recipe.seed).to(device)
        self.model.train()
        self.optimizer = adamw(self.model, recipe)
        self.step = Step(self.model, self.optimizer, recipe, device)
        self.data = data
        self._order = (
            BatchOrder(len(data.ids), recipe.batch, recipe.seed) if isinstance(data, Sequences) else None
        )
        self.done = 0
        """Updates made so far."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step, counted from 0: ids (B, T) and targets (B, T), int64, on the device."""
        if isinstance(self.data, Windows):
            return self.data.random(step, self.recipe.batch, self.recipe.seed)
        assert self._order is not None
        return take(self.data, self._order.indices(step))

    def advance(self) -> Tensor:
        """Make one update.

        Returns:
            The loss of this step's batch before the update, a scalar on the device: reading it waits.
        """
        ids, targets = self.batch(self.done)
        loss = self.step(ids, targets, learning_rate(self.done, self.recipe))
        self.done += 1
        return loss

    def optimizer_state(self) -> dict[str, Any]:
        """All that decides the next steps apart from the weights: optimizer, loss scale, random numbers."""
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_optimizer_state(self, state: dict[str, Any], done: int) -> None:
        """Go back to where `optimizer_state` was taken, after `done` updates."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.step.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.done = done
