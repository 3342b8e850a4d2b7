"""How one training step is built: forward, backward, clip, update."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from flashmore.training.loss import mean_loss
from flashmore.training.recipe import Recipe

Precision = Callable[[], AbstractContextManager[object]]
"""Makes the context in which the model runs: autocast for the 16-bit dtypes, nothing for float32."""


def precision_of(recipe: Recipe, device: torch.device) -> Precision:
    """The autocast context of the recipe's dtype.

    https://docs.pytorch.org/docs/stable/amp.html
    """
    if recipe.dtype == "float32":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=getattr(torch, recipe.dtype))


class Step:
    """One optimiser step on one batch.

    Args:
        model: in training mode, on its device.
        optimizer: over the model's parameters.
        recipe: gives the clipping and the precision.
        device: where the model is.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.clip = recipe.clip
        self.precision = precision_of(recipe, device)
        # float16's gradients underflow without scaling; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.dtype == "float16")

    def __call__(self, ids: Tensor, targets: Tensor, lr: float) -> Tensor:
        """Update the weights once.

        Args:
            ids: (B, T) int64.
            targets: (B, T) int64.
            lr: learning rate of this update.

        Returns:
            The loss before the update, a scalar on the device: reading it waits for the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.precision():
            loss = mean_loss(self.model(ids), targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()
