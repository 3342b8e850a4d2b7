"""An optimizer update as a function of flat buffers: gradient, clipping and the optimizer.

https://docs.pytorch.org/docs/stable/generated/torch.func.grad_and_value.html

All parameters are views of one flat buffer, whose gradient is one tensor and whose update is one kernel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.optim.adamw import adamw

from flashmore.config import TrainConfig
from flashmore.training.dataset import Batch
from flashmore.training.optimizers import (
    ADAMW_MOMENTS,
    EPS,
    MUON_MOMENTS,
    MUON_MOMENTUM,
    is_decayed,
    muon_matrices,
    orthogonal,
)
from flashmore.training.step import precision_of, training_loss


@dataclass(frozen=True)
class Buffers:
    """The tensors of an update; P is the number of parameters, A that of those which AdamW updates."""

    flat: Tensor
    """The weights, (P,)."""
    mean: Tensor
    """AdamW's first moments and Muon's momentum, (P,)."""
    square: Tensor
    """AdamW's second moments, (A,)."""
    updates: Tensor
    """Number of updates so far, a scalar of the weights' dtype."""
    decay: Tensor
    """Weight decay of each parameter, (P,); the only one that an update does not change."""

    @property
    def changing(self) -> tuple[Tensor, ...]:
        """The tensors that an update changes."""
        return self.flat, self.mean, self.square, self.updates

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of the fields."""
        return *self.changing, self.decay


class Update:
    """One optimizer update of a model.

    Args:
        model: the model; only its structure matters, so its parameters may be on the meta device.
        config: the optimizer's settings, the clipping and the precision.
        fused: use PyTorch's fused AdamW; a compiler makes its own.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device, *, fused: bool) -> None:
        self.model, self.config = model, config
        self.precision = precision_of(config, device)
        self._fused = fused
        # Matrices that Muon updates come last, so that AdamW's and Muon's parameters are contiguous.
        matrices = muon_matrices(model) if config.optimizer == "muon" else {}
        parameters = {name: p for name, p in model.named_parameters() if name not in matrices} | matrices
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.adamw = tuple(name for name in parameters if name not in matrices)
        """The names of the parameters that AdamW updates; they come first."""
        self.adamw_size = sum(parameters[name].numel() for name in self.adamw)
        self._matrices = [tuple(parameter.shape) for parameter in matrices.values()]
        self._decayed = {name: is_decayed(parameter, config) for name, parameter in parameters.items()}

    def zeros(self, dtype: torch.dtype, device: torch.device) -> Buffers:
        """Buffers for weights of this dtype, which are zero."""
        size = sum(shape.numel() for shape in self.shapes.values())
        flat = torch.zeros(size, dtype=dtype, device=device)
        decay = [
            torch.full((shape.numel(),), self.config.weight_decay * self._decayed[name])
            for name, shape in self.shapes.items()
        ]
        square = torch.zeros_like(flat[: self.adamw_size])
        return Buffers(flat, torch.zeros_like(flat), square, flat.new_zeros(()), torch.cat(decay).to(flat))

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of a buffer (P,)."""
        parts = torch.split(flat, [shape.numel() for shape in self.shapes.values()])
        shapes = self.shapes.items()
        return {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}

    def moments(self, buffers: Buffers) -> dict[str, Tensor]:
        """The optimizer's tensors by the names of `ADAMW_MOMENTS` and `MUON_MOMENTS`, as views."""
        first = self.views(buffers.mean)
        squares = torch.split(buffers.square, [self.shapes[name].numel() for name in self.adamw])
        mean, square = ADAMW_MOMENTS
        (momentum,) = MUON_MOMENTS
        return (
            {f"{mean}.{name}": first[name] for name in self.adamw}
            | {
                f"{square}.{name}": part.view(self.shapes[name])
                for name, part in zip(self.adamw, squares, strict=True)
            }
            | {f"{momentum}.{name}": value for name, value in first.items() if name not in self.adamw}
        )

    def gradient(self, flat: Tensor, batch: Batch, unused: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The gradient (P,) of the loss of a batch, and the loss.

        Args:
            flat: the weights, (P,).
            batch: the batch.
            unused: added to the logits, (V,): very negative for ids that the vocabulary does not have.
        """

        def loss_of(flat: Tensor) -> tuple[Tensor, Tensor]:
            with self.precision():
                logits = functional_call(self.model, self.views(flat), (batch.ids, *batch.extra))
            if unused is not None:
                logits = logits + unused
            return training_loss(logits, batch, self.config.soft_weight, self.config.loss_temperature)

        gradient, (_, loss) = grad_and_value(loss_of, has_aux=True)(flat)
        assert isinstance(loss, Tensor)
        return gradient, loss

    def apply(self, buffers: Buffers, gradient: Tensor, rates: Tensor) -> None:
        """Update the weights by a gradient (P,), with the learning rates of AdamW and Muon, (2,)."""
        config, end, flat, mean = self.config, self.adamw_size, buffers.flat, buffers.mean
        if config.grad_clip:
            norm = torch.linalg.vector_norm(gradient)
            gradient = gradient * torch.clamp(config.grad_clip / (norm + 1e-6), max=1.0)
        rate = torch.cat((rates[0].expand(end), rates[1].expand(len(gradient) - end)))
        flat.mul_(1 - rate * buffers.decay)
        adamw(
            [flat[:end]], [gradient[:end]], [mean[:end]], [buffers.square], [], [buffers.updates],
            foreach=False, fused=self._fused, capturable=True, amsgrad=False, maximize=False, lr=rates[0],
            beta1=config.beta1, beta2=config.beta2, weight_decay=0.0, eps=EPS,
        )  # fmt: skip
        if self._matrices:
            momentum = mean[end:].lerp_(gradient[end:], 1 - MUON_MOMENTUM)
            nesterov = gradient[end:].lerp(momentum, MUON_MOMENTUM)
            flat[end:].sub_(rates[1] * orthogonal(nesterov, self._matrices))
