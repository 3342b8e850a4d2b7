"""A training step as one function of one flat buffer: forward, backward, clipping and the optimizer.

https://docs.pytorch.org/docs/stable/generated/torch.compile.html

An eager step has the overhead of Python, autograd and an optimizer over many tensors between its kernels.
Here the model, its gradient and the optimizer compile to one graph, now or ahead of time (`ahead.py`); the
number of tokens is dynamic, so packed batches need no padding and no recompilation. Nothing synchronises or
branches on data, so the step can be captured as a CUDA graph (`cuda_graph.py`).
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

from flashmore.config import TrainConfig
from flashmore.parallel import ALONE, Ranks
from flashmore.runs import LossScale
from flashmore.training.compiled.ahead import Compiled
from flashmore.training.compiled.program import Program
from flashmore.training.compiled.update import Update
from flashmore.training.dataset import Batch
from flashmore.training.step import Rates, Slices, seed_dropout


class FlatStep:
    """One optimizer step on one batch, in one function.

    `update(batch, rates)` is that function; `rates`, (2,) on the device, holds AdamW's and Muon's learning
    rates. If the batch is cut into slices, `gradient(batch)` and `apply(gradient, rates)` are its two halves.

    The model's parameters become views of one buffer, so they reflect every update.

    Args:
        model: in training mode, on its device, with floating-point parameters of one dtype.
        config: the optimizer's settings, the clipping and the precision; float16, which needs loss scaling,
            is not supported.
        mode: torch.compile's mode; None runs eagerly.
        ranks: the processes that share the batch, each with a copy of the model.
        program: the step, to be compiled ahead of time or found in the cache, instead of by torch.compile.
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
        program: Program | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.ranks = ranks
        parameters = dict(model.named_parameters())
        dtype = next(iter(parameters.values())).dtype
        structure = model if program is None else program.structure()
        self._function = Update(structure, config, device, fused=mode is None)
        self._buffers = self._function.zeros(dtype, device)
        self.precision = self._function.precision
        self._real = {name: parameter.shape for name, parameter in parameters.items()}
        """Shapes without the padding that a step compiled ahead of time has."""
        with torch.no_grad():
            for name, view in self._without_padding(self._function.views(self._buffers.flat)).items():
                view.copy_(parameters[name])
                parameters[name].data = view
        self._sizes: tuple[int, ...] | None = None
        self._dynamo = mode is not None and program is None
        self.update: Callable[[Batch, Tensor], Tensor] = self._update
        self.gradient: Callable[[Batch], Tensor] = self._gradient
        self.apply: Callable[[Tensor, Tensor], None] = self._apply
        if mode is None:
            return
        if program is not None:
            sizes: Any = model.config
            ahead = Compiled(program, sizes.vocab_size, automatic=config.attention == "auto")
            self.update = partial(ahead, self._buffers)
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
        """As in `EagerStep`; the number of rows and the longest item must be those of the first batch."""
        (slices,), (learning_rates,) = batches, rates
        flat = self._buffers.flat
        on_device = torch.tensor(learning_rates, dtype=flat.dtype, device=flat.device)
        first = self._sizes is None
        if first:
            self._sizes = slices[0].fixed_sizes
            if self._dynamo:
                slices[0].leave_length_open()
        assert all(self._sizes == batch.fixed_sizes for batch in slices), "compiled for other sizes"
        with warnings.catch_warnings() if first and self._dynamo else nullcontext():
            if self._dynamo:  # PyTorch's compiler uses APIs that PyTorch has deprecated
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
        gradient, loss = self._function.gradient(self._buffers.flat, batch)
        if self.ranks.connected:  # one message within the graph
            group = dist.group.WORLD
            assert group is not None
            total = all_reduce(torch.cat((gradient, loss.view(1))), "sum", group)
            gradient, loss = total[:-1], total[-1]
        self._apply(gradient, rates)
        return loss

    def _gradient(self, batch: Batch) -> Tensor:
        """The gradient of the loss of a slice, and the loss: (P + 1,)."""
        gradient, loss = self._function.gradient(self._buffers.flat, batch)
        return torch.cat((gradient, loss.view(1)))

    def _apply(self, gradient: Tensor, rates: Tensor) -> None:
        """Update the weights by a gradient (P,)."""
        self._function.apply(self._buffers, gradient, rates)

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All tensors that an update changes: the weights and the optimizer state."""
        return self._buffers.changing

    def state_dict(self) -> dict[str, Tensor]:
        """As in `EagerStep`."""
        moments = self._without_padding(self._function.moments(self._buffers))
        return {"step": self._buffers.updates, **moments}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """As in `EagerStep`."""
        for name, kept in self.state_dict().items():
            kept.copy_(tensors[name])

    def _without_padding(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views of parameters, or of their moments, without the rows that pad a table."""
        cut = {}
        for name, view in views.items():
            shape = self._real[name if name in self._real else name.partition(".")[2]]
            cut[name] = view[: shape[0]] if shape != view.shape else view
        return cut


def _own(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same bound method with its own code object.

    Dynamo caches compiled code by code object. Without guards it would reuse the first model's graph, with
    its sizes and config, for every later model of the process.
    """
    assert isinstance(method, MethodType)
    code = method.__func__.__code__
    function = FunctionType(code.replace(), method.__func__.__globals__, code.co_name)
    return MethodType(function, method.__self__)
