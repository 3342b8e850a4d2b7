"""A whole training step as one compiled graph: forward, backward, clipping and the optimizer.

https://docs.pytorch.org/docs/stable/generated/torch.compile.html
https://docs.pytorch.org/docs/stable/generated/torch.func.grad_and_value.html

Between the kernels of an eager step stand Python, autograd's bookkeeping and an optimizer over 53 small tensors.
Here all parameters lie in one flat buffer, whose gradient is one tensor and whose update is one kernel, and Dynamo
sees no boundary between the model, its gradient and the optimizer. The number of tokens stays open, so that
packed batches need no padding and no second compilation.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.optim.adamw import adamw

from flashmore.training.batch import Batch
from flashmore.training.loss import mean_loss
from flashmore.training.recipe import Recipe
from flashmore.training.step import precision_of


class CompiledStep:
    """One optimiser step on one batch, in one graph.

    The model's parameters become views of one buffer: what reads them sees every update.

    Args:
        model: in training mode, on its device, with dense floating-point parameters of one dtype.
        recipe: gives AdamW's numbers, the clipping and the precision; float16 needs loss scaling, and has none
            here.
        device: where the model is.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self.model = model
        self.recipe = recipe
        self.precision = precision_of(recipe, device)
        parameters = dict(model.named_parameters())
        self._names = list(parameters)
        self._shapes = [parameter.shape for parameter in parameters.values()]
        self._sizes = [parameter.numel() for parameter in parameters.values()]
        self.flat = torch.cat([parameter.detach().flatten() for parameter in parameters.values()])
        for parameter, view in zip(parameters.values(), self._views(self.flat).values(), strict=True):
            parameter.data = view
        self._mean, self._square = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self._updates = torch.zeros((), device=device)
        self._graph = torch.compile(
            self._update, fullgraph=True, options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        )
        self._fresh = True

    def __call__(self, batch: Batch, lr: float) -> Tensor:
        """Update the weights once.

        Args:
            batch: on the device.
            lr: learning rate of this update.

        Returns:
            The loss before the update, a scalar on the device: reading it waits for the device.
        """
        if self._fresh:  # what it is told of the first batch holds for all
            batch.leave_length_open()
            self._fresh = False
        loss: Tensor = self._graph(batch, torch.full((), lr, device=self.flat.device))
        return loss

    def _update(self, batch: Batch, lr: Tensor) -> Tensor:
        def loss_of(flat: Tensor) -> Tensor:
            with self.precision():
                logits = functional_call(self.model, self._views(flat), (batch.ids, *batch.extra))
            return mean_loss(logits, batch.targets)

        gradient, loss = grad_and_value(loss_of)(self.flat)
        if self.recipe.clip:
            norm = torch.linalg.vector_norm(gradient)
            gradient = gradient * torch.clamp(self.recipe.clip / (norm + 1e-6), max=1.0)
        adamw(
            [self.flat], [gradient], [self._mean], [self._square], [], [self._updates],
            foreach=False, capturable=True, amsgrad=False, maximize=False,
            lr=lr, beta1=self.recipe.beta1, beta2=self.recipe.beta2,
            weight_decay=self.recipe.weight_decay, eps=1e-8,
        )  # fmt: skip
        return loss

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split(self._sizes)
        return {
            name: part.view(shape) for name, part, shape in zip(self._names, parts, self._shapes, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """What decides the next update apart from the weights."""
        return {"mean": self._mean, "square": self._square, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self._mean.copy_(state["mean"])
        self._square.copy_(state["square"])
        self._updates.copy_(state["updates"])
