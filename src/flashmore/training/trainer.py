"""A model with its optimizer and its data."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashmore.config import LARGEST, TrainConfig
from flashmore.data.batches import IGNORE
from flashmore.errors import ConfigError
from flashmore.files import INTACT
from flashmore.memory import largest_batch
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.parallel import ALONE, Ranks, shard, shard_like, whole_tensor
from flashmore.runs import Checkpoint
from flashmore.training.compiled.cuda_graph import CudaGraphStep
from flashmore.training.compiled.flat import FlatStep
from flashmore.training.compiled.program import mode_of, program_of
from flashmore.training.dataset import Batch, Dataset, Form
from flashmore.training.optimizers import learning_rate_share
from flashmore.training.step import EagerStep, Precision, mean_loss

USUAL = ("fused-adamw",)
"""Speed-ups for comparisons of attention backends alone: padded rows."""
REPLAYED = 8
"""Updates in one replay of a CUDA graph."""
CACHED_POSITIONS = 4096
"""Positions of a batch in an evaluation on a CPU: their activations fit into its caches (docs/log.md)."""
Step = EagerStep | FlatStep | CudaGraphStep
T = TypeVar("T")


class Trainer:
    """A model, its optimizer and its data: everything a step needs.

    Args:
        config: the training options; the seed determines the initial weights, the data order and dropout.
        model_config: the model's sizes; `attention` names a backend that runs on `device`.
        data: the training data, on `device`.
        speedups: names of speed-ups that work here.
        ranks: the processes that share each batch, each with a copy of the model or a share of it.

    Raises:
        ConfigError: a batch that the slices, or slices that the ranks, cannot share equally.
    """

    def __init__(
        self,
        config: TrainConfig,
        model_config: ModelConfig,
        data: Dataset,
        device: torch.device,
        speedups: Collection[str] = USUAL,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.slices = ranks.slices(config)
        self.rows = config.batch_size // self.slices[0][1]
        """Items or windows of a slice, which are in memory together."""
        if config.threads_here:
            torch.set_num_threads(config.threads_here)
        # One switch for the process: without this a run would inherit that of the run before.
        torch.set_float32_matmul_precision("high" if "tf32" in speedups else "highest")
        self.config = config
        self.model_config = model_config
        self.device = device
        self.speedups, self.sharded = tuple(speedups), ranks.shards(config)
        self.model = build(model_config, config.seed)
        if self.sharded:  # moves one block after the other to the device, and keeps a share of it
            shard(self.model, ranks, device, offload=config.cpu_offload)
        else:
            self.model.to(device)
        self.model.train()
        if config.activation_checkpointing:
            transformer: Any = self.model
            transformer.activation_checkpointing = True
        self.step: Step = _step_of(self.model, config, device, speedups, ranks)
        self.data = data
        self.form: Form = "packed" if "pack" in speedups else "trimmed" if "trim" in speedups else "padded"
        self.done = 0
        """Updates made so far."""

    def batches(self, step: int) -> list[Batch]:
        """This rank's slices of the batch of a step, counted from 0, on the device."""
        batches = [self.data.batch(step, self.form, part) for part in self.slices]
        if not (self.model_config.dropout or self.model_config.attention_dropout):
            return batches
        # Of 32 bits, as many as PyTorch's generator of the CPU uses.
        seeds = (np.random.SeedSequence((self.config.seed, step, number)) for number, _ in self.slices)
        return [
            replace(batch, dropout_seed=int(seed.generate_state(1)[0]))
            for batch, seed in zip(batches, seeds, strict=True)
        ]

    def train_step(self, most: int = 1) -> Tensor:
        """Make one update, or as many as one call of the step makes if that is at most `most`.

        Returns:
            The loss of the last batch before its update, a scalar on the device; reading it synchronises.
        """
        count = self.step.updates if self.step.updates <= most else 1
        steps = range(self.done, self.done + count)
        config, shares = self.config, [learning_rate_share(step, self.config) for step in steps]
        rates = [(share * config.learning_rate, share * config.muon_learning_rate) for share in shares]
        loss = self.step([self.batches(step) for step in steps], rates)
        self.done += count
        return loss

    def total(self, loss: Tensor) -> float:
        """The loss of all ranks, from that which `train_step` returned on each."""
        complete = self.config.slices or not isinstance(self.step, EagerStep)
        return (loss if complete else self.ranks.total(loss.clone())).item()

    def evaluate(self, data: Dataset, stopped: Callable[[], bool] = lambda: False) -> float | None:
        """The mean loss over a whole part, in nats per character; None if it was stopped before the end."""
        return evaluate(self.model, data, self.step.precision, self.ranks, stopped)

    def weights(self) -> dict[str, Tensor]:
        """The model's `state_dict()`; of a sharded model, this rank's shares."""
        return self.model.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights in one piece into the model."""
        own = self.model.state_dict()
        for name, value in weights.items():
            own[name].copy_(shard_like(own[name], value))

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's state: with the weights, everything the next steps depend on.

        Of a sharded model, whole tensors on the CPU of rank 0. Every rank must ask for them.
        """
        whole = {}
        for name, value in self.step.state_dict().items():  # one by one: a device may not hold all of them
            tensor = whole_tensor(value)
            if tensor is value:
                whole[name] = value
            elif self.ranks.rank == 0:
                whole[name] = tensor.cpu()
        return whole

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a checkpoint.

        Raises:
            ConfigError: more optimizer updates than steps.
        """
        self.load_weights(checkpoint.weights)
        updates, done = checkpoint.optimizer["step"].item(), checkpoint.state.step
        if not 0 <= updates <= done:
            raise ConfigError(f"0 to {done} updates of the optimizer", str(updates), INTACT)
        self.step.load_state_dict(checkpoint.optimizer)
        self.step.loss_scale = checkpoint.state.loss_scale
        self.done = done


def _step_of(
    model: nn.Module, config: TrainConfig, device: torch.device, speedups: Collection[str], ranks: Ranks
) -> Step:
    """The step for this model with these speed-ups."""
    if not {"compile", "cuda-graph"}.intersection(speedups):
        return EagerStep(model, config, device, fused="fused-adamw" in speedups, ranks=ranks)
    if "compile" not in speedups:
        step = FlatStep(model, config, device, None, ranks)
    else:
        sizes: Any = model.config
        program = program_of(config, sizes, device, speedups)
        step = FlatStep(model, config, device, mode_of(speedups), ranks, program)
    if "cuda-graph" not in speedups:
        return step
    return CudaGraphStep(step, REPLAYED if "replay" in speedups else 1)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Dataset,
    precision: Precision,
    ranks: Ranks = ALONE,
    stopped: Callable[[], bool] = lambda: False,
) -> float | None:
    """Mean loss in nats per character over all of `data`, in evaluation mode, within the free memory.

    The sum over characters divided by their number: a mean of batch means would overweight short batches.
    With weights, each item's sum and number of characters count by its weight.

    The ranks take turns with the batches; the sum has the same order, and bits, for any number of them.

    Args:
        precision: the context in which the model runs.
        ranks: the processes that share the work.
        stopped: asked between batches, with the same answer on every rank.

    Returns:
        The loss; None if it was stopped.
    """
    config = model.config
    assert isinstance(config, ModelConfig)
    was_training = model.training
    model.eval()
    rows = []
    on_cpu = next(model.parameters()).device.type == "cpu"

    def rows_at_once(length: int) -> int:
        most = max(1, CACHED_POSITIONS // length) if on_cpu else LARGEST
        return min(largest_batch(config, length), most)

    for batches in _rounds(data.evaluation(rows_at_once), ranks.size):
        # All ranks run the model equally often, because a sharded one communicates.
        sums = _sums(model, batches[min(ranks.rank, len(batches) - 1)](), precision)
        own = torch.zeros(len(batches), 2, dtype=torch.float64)
        if ranks.rank < len(batches):
            own[ranks.rank] = sums
        rows.append(own)
        if stopped():
            break
    else:
        total, characters = ranks.total(torch.cat(rows)).cumsum(0)[-1].tolist()  # one after the other
        model.train(was_training)
        return float(total / characters)
    model.train(was_training)
    return None


def _rounds(batches: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` of them, and of fewer at the end."""
    remaining = iter(batches)
    while group := list(islice(remaining, size)):
        yield group


def _sums(model: nn.Module, batch: Batch, precision: Precision) -> Tensor:
    """The sum of the loss over a batch, and the number of its characters: (2,) float64."""
    real = (batch.targets != IGNORE).sum(1).cpu().double()  # (B,)
    with precision():
        logits = model(batch.ids)
    if batch.weights is None:
        loss = mean_loss(logits, batch.targets)
        return torch.stack((loss.cpu().double() * real.sum(), real.sum()))  # not every device has float64
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).transpose(1, 2)  # (B, V, T)
    losses = F.cross_entropy(logits, batch.targets, ignore_index=IGNORE, reduction="none")  # (B, T)
    return torch.stack((batch.weights @ losses.cpu().double().sum(1), batch.weights @ real))
