"""A training step as one function of one flat buffer: forward, backward, clipping and the optimizer.

https://docs.pytorch.org/docs/stable/generated/torch.compile.html
https://docs.pytorch.org/docs/stable/generated/torch.func.grad_and_value.html

An eager step has the overhead of Python, autograd and an optimizer over many tensors between its kernels.
Here all parameters are views of one flat buffer, whose gradient is one tensor and whose update is one kernel.
The model, its gradient and the optimizer compile to one graph; the number of tokens is dynamic, so packed
batches need no padding and no recompilation. Nothing synchronises or branches on data, so the step can be
captured as a CUDA graph (`cuda_graph.py`).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce
from torch.func import functional_call, grad_and_value
from torch.optim.adamw import adamw

from flashmore.config import TrainConfig
from flashmore.parallel import ALONE, Ranks
from flashmore.runs import LossScale
from flashmore.training.dataset import Batch
from flashmore.training.optimizers import (
    ADAMW_MOMENTS,
    EPS,
    MUON_MOMENTS,
    MUON_MOMENTUM,
    MatrixGroups,
    is_decayed,
    muon_matrices,
)
from flashmore.training.step import Rates, Slices, precision_of, seed_dropout, training_loss


class FlatStep:
    """One optimizer step on one batch, in one function.

    `update(batch, rates)` is that function; `rates`, (2,) on the device, holds AdamW's and Muon's learning
    rates. If the batch is cut into slices, `gradient(batch)` and `apply(gradient, rates)` are its two halves.

    The model's parameters become views of one buffer, so they reflect every update.

    Args:
        model: in training mode, on its device, with floating-point parameters of one dtype.
        config: the optimizer's settings, the clipping and the precision; float16, which needs loss scaling,
            is not supported.
        device: the model's device.
        mode: torch.compile's mode; None runs eagerly.
        ranks: the processes that share the batch, each with a copy of the model.
    """

    updates = 1
    loss_scale: LossScale | None = None
    """None: float16, which needs loss scaling, is not supported."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        device: torch.device,
        mode: str | None = "default",
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model
        self.config = config
        self.ranks = ranks
        self.precision = precision_of(config, device)
        # Matrices that Muon updates come last, so that AdamW's and Muon's parameters are contiguous.
        matrices = muon_matrices(model) if config.optimizer == "muon" else {}
        parameters = {name: p for name, p in model.named_parameters() if name not in matrices} | matrices
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._muon = len(matrices)
        self._adamw = sum(p.numel() for name, p in parameters.items() if name not in matrices)
        self.flat = torch.cat([parameter.detach().flatten() for parameter in parameters.values()])
        for parameter, view in zip(parameters.values(), self.views(self.flat).values(), strict=True):
            parameter.data = view
        self._groups = MatrixGroups({name: tuple(p.shape) for name, p in matrices.items()})
        decayed = [torch.full((p.numel(),), float(is_decayed(p, config))) for p in parameters.values()]
        self._decay = config.weight_decay * torch.cat(decayed).to(self.flat)
        self._mean = torch.zeros_like(self.flat)
        self._square = torch.zeros_like(self.flat[: self._adamw])
        self._updates = torch.zeros((), device=device)
        self._fused = mode is None  # one kernel for AdamW; the compiler generates its own
        self._sizes: tuple[int, ...] | None = None
        self.update: Callable[[Batch, Tensor], Tensor] = self._update
        self.gradient: Callable[[Batch], Tensor] = self._gradient
        self.apply: Callable[[Tensor, Tensor], None] = self._apply
        if mode is None:
            return
        # Nothing that Dynamo would guard can change: the model, the config and the batch's sizes are fixed.
        options: dict[str, Any] = {"guard_filter_fn": lambda guards: [False] * len(guards)}
        options |= torch._inductor.list_mode_options(mode)
        options["autotune_num_choices_displayed"] = 0  # stderr is for what a user asked for
        # dynamic=False: sizes are constants of this graph even if they differ from an earlier model's.
        compiled = partial(torch.compile, fullgraph=True, dynamic=False, options=options)
        self.update, self.gradient = compiled(_own(self._update)), compiled(_own(self._gradient))
        self.apply = compiled(_own(self._apply))

    def __call__(self, batches: Sequence[Slices], rates: Sequence[Rates]) -> Tensor:
        """As in `Step`; the number of rows and the longest item must be those of the first batch."""
        (slices,), (learning_rates,) = batches, rates
        on_device = torch.tensor(learning_rates, dtype=self.flat.dtype, device=self.flat.device)
        first = self._sizes is None
        if first:
            self._sizes = slices[0].fixed_sizes
            slices[0].leave_length_open()
        assert all(self._sizes == batch.fixed_sizes for batch in slices), "compiled for other sizes"
        with warnings.catch_warnings() if first else nullcontext():
            if first:  # PyTorch's compiler uses APIs that PyTorch has deprecated
                warnings.simplefilter("ignore", DeprecationWarning)
            if len(slices) == 1 and not self.config.slices:
                seed_dropout(slices[0])
                return self.update(slices[0], on_device)
            total = self._total_gradient(slices)
            self.apply(total[:-1], on_device)
            return total[-1]

    def _total_gradient(self, slices: Slices) -> Tensor:
        """The sum of `gradient` over all slices of all ranks."""
        vectors = []
        for batch in slices:
            seed_dropout(batch)
            vectors.append(self.gradient(batch).clone())
        if self.config.slices:
            return self.ranks.ordered_total(vectors)
        return self.ranks.total(torch.stack(vectors).sum(0))

    def _update(self, batch: Batch, rates: Tensor) -> Tensor:
        gradient, loss = self._gradient_and_loss(batch)
        if self.ranks.connected:  # one message within the graph
            group = dist.group.WORLD
            assert group is not None
            total = all_reduce(torch.cat((gradient, loss.view(1))), "sum", group)
            gradient, loss = total[:-1], total[-1]
        self._apply(gradient, rates)
        return loss

    def _gradient(self, batch: Batch) -> Tensor:
        """The gradient of the loss of a slice, and the loss: (P + 1,)."""
        gradient, loss = self._gradient_and_loss(batch)
        return torch.cat((gradient, loss.view(1)))

    def _gradient_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        def loss_of(flat: Tensor) -> tuple[Tensor, Tensor]:
            with self.precision():
                logits = functional_call(self.model, self.views(flat), (batch.ids, *batch.extra))
            return training_loss(logits, batch, self.config.ngram_smoothing)

        gradient, (_, loss) = grad_and_value(loss_of, has_aux=True)(self.flat)
        assert isinstance(loss, Tensor)
        return gradient, loss

    def _apply(self, gradient: Tensor, rates: Tensor) -> None:
        """Update the weights by a gradient (P,)."""
        config, end = self.config, self._adamw
        if config.grad_clip:
            norm = torch.linalg.vector_norm(gradient)
            gradient = gradient * torch.clamp(config.grad_clip / (norm + 1e-6), max=1.0)
        rate = torch.cat((rates[0].expand(end), rates[1].expand(len(gradient) - end)))
        self.flat.mul_(1 - rate * self._decay)
        adamw(
            [self.flat[:end]], [gradient[:end]], [self._mean[:end]], [self._square], [], [self._updates],
            foreach=False, fused=self._fused, capturable=True, amsgrad=False, maximize=False, lr=rates[0],
            beta1=config.beta1, beta2=config.beta2, weight_decay=0.0, eps=EPS,
        )  # fmt: skip
        if self._groups:
            momentum = self._mean[end:].lerp_(gradient[end:], 1 - MUON_MOMENTUM)
            nesterov = gradient[end:].lerp(momentum, MUON_MOMENTUM)
            self.flat[end:].sub_(rates[1] * self._groups.orthogonal(nesterov))

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of a buffer with this step's layout."""
        parts = torch.split(flat, [shape.numel() for shape in self._shapes.values()])
        shapes = self._shapes.items()
        return {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All tensors that an update changes: the weights and the optimizer state."""
        return self.flat, self._mean, self._square, self._updates

    def state_dict(self) -> dict[str, Tensor]:
        """As in `Step`."""
        return {"step": self._updates, **self._moments()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """As in `Step`."""
        for name, kept in self.state_dict().items():
            kept.copy_(tensors[name])

    def _moments(self) -> dict[str, Tensor]:
        first = self.views(self._mean)
        names = list(self._shapes)[: len(self._shapes) - self._muon]
        squares = torch.split(self._square, [self._shapes[name].numel() for name in names])
        mean, square = ADAMW_MOMENTS
        (momentum,) = MUON_MOMENTS
        return (
            {f"{mean}.{name}": first[name] for name in names}
            | {
                f"{square}.{name}": part.view(self._shapes[name])
                for name, part in zip(names, squares, strict=True)
            }
            | {f"{momentum}.{name}": value for name, value in first.items() if name not in names}
        )


def _own(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same bound method with its own code object.

    Dynamo caches compiled code by code object. Without guards it would reuse the first model's graph, with
    its sizes and config, for every later model of the process.
    """
    assert isinstance(method, MethodType)
    code = method.__func__.__code__
    function = FunctionType(code.replace(), method.__func__.__globals__, code.co_name)
    return MethodType(function, method.__self__)
