"""How one training step is built: forward, backward, clip, update."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flashmore.training.batch import Batch
from flashmore.training.loss import mean_loss
from flashmore.training.optimizers import optimizers_of
from flashmore.training.recipe import Recipe

Precision = Callable[[], AbstractContextManager[object]]
"""Makes the context in which the model runs: autocast for the 16-bit dtypes, nothing for float32."""


def precision_of(recipe: Recipe, device: torch.device) -> Precision:
    """The autocast context of the recipe's dtype.

    https://docs.pytorch.org/docs/stable/amp.html
    """
    if recipe.precision == "float32":
        return nullcontext
    return partial(torch.autocast, device.type, dtype=getattr(torch, recipe.precision))


class Step:
    """One optimiser step on one batch, each operation by itself.

    Args:
        model: in training mode, on its device.
        recipe: gives the optimizer's numbers, the clipping and the precision.
        device: where the model is.
        fused: AdamW in one kernel.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device, *, fused: bool) -> None:
        self.model = model
        self.optimizers = optimizers_of(model, recipe, fused=fused)
        self.clip = recipe.clip
        self.precision = precision_of(recipe, device)
        # float16's gradients underflow without scaling; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")

    def __call__(self, batch: Batch, lr: float, muon_lr: float = 0.0) -> Tensor:
        """Update the weights once.

        Args:
            batch: on the device.
            lr: learning rate of this update.
            muon_lr: that of the matrices which Muon updates.

        Returns:
            The loss before the update, a scalar on the device: reading it waits for the device.
        """
        with self.precision():
            loss = mean_loss(self.model(batch.ids, *batch.extra), batch.targets)
        self.model.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        for optimizer, rate in zip(self.optimizers, (lr, muon_lr), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate
            if self.clip:
                self.scaler.unscale_(optimizer)
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """What decides the next update apart from the weights."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"optimizers": optimizers, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.scaler.load_state_dict(state["scaler"])
