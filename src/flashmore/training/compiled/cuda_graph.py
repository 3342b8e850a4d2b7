"""Training steps captured as a CUDA graph and replayed: one launch for all kernels.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/

The kernels of a small model finish before the CPU can launch the next one; a graph avoids these launches. It
always reads the same memory: batches are copied there before a replay, so their sizes must not change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashmore.runs import LossScale
from flashmore.training.compiled.flat import FlatStep
from flashmore.training.dataset import Batch
from flashmore.training.step import Rates, Slices, seed_dropout

WARM_UP = 3
"""Updates before the capture, in which libraries choose kernels and allocate memory."""


@dataclass(frozen=True)
class Recording:
    """One or more updates as one graph, with the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batches: tuple[Batch, ...]
    rates: Tensor
    """(updates, 2)."""
    loss: Tensor
    """Of the last update's batch."""


class CudaGraphStep:
    """Optimizer steps as replays of CUDA graphs.

    Args:
        step: the step to capture, with its model on a CUDA device.
        updates: updates per replay; a graph of a single update is captured on demand.
    """

    loss_scale: LossScale | None = None
    """None: float16, which needs loss scaling, is not supported."""

    def __init__(self, step: FlatStep, updates: int = 1) -> None:
        self.step = step
        self.updates = updates
        self.precision = step.precision
        self._recordings: dict[int, Recording] = {}

    def __call__(self, batches: Sequence[Slices], rates: Sequence[Rates]) -> Tensor:
        """As in `EagerStep`, in one launch; every batch must be whole and have the same shape (B, T).

        Dropout is seeded once for all updates of the launch.
        """
        whole = [batch for (batch,) in batches]
        seed_dropout(whole[0])
        if len(batches) not in self._recordings:
            self._recordings[len(batches)] = self._record(whole)
        recording = self._recordings[len(batches)]
        for kept, batch in zip(recording.batches, whole, strict=True):
            kept.ids.copy_(batch.ids)
            kept.targets.copy_(batch.targets)
            if kept.soft_targets is not None and batch.soft_targets is not None:
                kept.soft_targets.copy_(batch.soft_targets)
        recording.rates.copy_(torch.tensor(rates))
        recording.graph.replay()
        return recording.loss.clone()  # the next replay overwrites it

    def _record(self, batches: Sequence[Batch]) -> Recording:
        """Capture updates without applying any: state changed by the warm-up is restored."""
        kept = tuple(
            Batch(
                batch.ids.clone(),
                batch.targets.clone(),
                soft_targets=None if batch.soft_targets is None else batch.soft_targets.clone(),
            )
            for batch in batches
        )
        rates = torch.zeros((len(batches), 2), device=self.step.buffers[0].device)
        before = [buffer.clone() for buffer in self.step.buffers]
        random = torch.cuda.get_rng_state(rates.device)
        aside = torch.cuda.Stream(rates.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.step([kept[:1]], [(0.0, 0.0)])
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses = [self.step.update(batch, rate) for batch, rate in zip(kept, rates.unbind(), strict=True)]
        for buffer, was in zip(self.step.buffers, before, strict=True):
            buffer.copy_(was)
        torch.cuda.set_rng_state(random, rates.device)
        return Recording(graph, kept, rates, losses[-1])

    def state_dict(self) -> dict[str, Tensor]:
        """As in `EagerStep`."""
        return self.step.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """As in `EagerStep`."""
        self.step.load_state_dict(tensors)
