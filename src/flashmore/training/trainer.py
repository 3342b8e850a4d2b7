"""A model with its optimizer and its data."""

import struct
from collections.abc import Collection
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashmore.config import TrainConfig
from flashmore.data.batches import IGNORE
from flashmore.errors import ConfigError
from flashmore.files import INTACT
from flashmore.memory import largest_batch
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.runs import Checkpoint
from flashmore.training.cuda_graph import CudaGraphStep
from flashmore.training.dataset import Batch, Dataset, Form
from flashmore.training.flat import FlatStep
from flashmore.training.optimizers import learning_rate_share
from flashmore.training.step import EagerStep, Precision, Step, mean_loss

USUAL = ("fused-adamw",)
"""Speed-ups for comparisons of attention backends alone: padded rows."""
CUDA_GENERATOR = "rng.cuda"
"""Name of the CUDA generator state, which a run saved on a CPU does not have."""
REPLAYED = 8
"""Updates in one replay of a CUDA graph."""


class Trainer:
    """A model, its optimizer and its data: everything a step needs.

    Args:
        config: the training options; the seed determines the initial weights, the data order and dropout.
        model_config: the model's sizes; `attention` names a backend that runs on `device`.
        data: the training data, on `device`.
        device: the training device.
        speedups: names of speed-ups that work here.
    """

    def __init__(
        self,
        config: TrainConfig,
        model_config: ModelConfig,
        data: Dataset,
        device: torch.device,
        speedups: Collection[str] = USUAL,
    ) -> None:
        if config.threads_here:
            torch.set_num_threads(config.threads_here)
        # One switch for the process: without this a run would inherit that of the run before.
        torch.set_float32_matmul_precision("high" if "tf32" in speedups else "highest")
        torch.manual_seed(config.seed)  # dropout; the initial weights have their own generator
        self.config = config
        self.model_config = model_config
        self.device = device
        self.model = build(model_config, config.seed).to(device)
        self.model.train()
        self.step = _step_of(self.model, config, device, speedups)
        self.data = data
        self.form: Form = "packed" if "pack" in speedups else "trimmed" if "trim" in speedups else "padded"
        self.done = 0
        """Updates made so far."""

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0, on the device."""
        return self.data.batch(step, self.form)

    def train_step(self, most: int = 1) -> Tensor:
        """Make one update, or as many as one call of the step makes if that is at most `most`.

        Returns:
            The loss of the last batch before its update, a scalar on the device; reading it synchronises.
        """
        count = self.step.updates if self.step.updates <= most else 1
        steps = range(self.done, self.done + count)
        loss = self.step([self.batch(step) for step in steps], [self._rates(step) for step in steps])
        self.done += count
        return loss

    def evaluate(self, data: Dataset) -> float:
        """The mean loss over a whole part, in nats per character."""
        return evaluate(self.model, data, self.step.precision)

    def _rates(self, step: int) -> tuple[float, float]:
        """The learning rates of AdamW and Muon in the update after `step` updates."""
        share = learning_rate_share(step, self.config)
        return share * self.config.learning_rate, share * self.config.muon_learning_rate

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer and random generator state: with the weights, everything the next steps depend on."""
        state = self.step.state_dict() | {"rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state[CUDA_GENERATOR] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a checkpoint whose weights are already in the model.

        Raises:
            ConfigError: more optimizer updates than steps, or an invalid state of a PyTorch generator.
        """
        updates, done = checkpoint.optimizer["step"].item(), checkpoint.state.step
        if not 0 <= updates <= done:
            raise ConfigError(f"0 to {done} updates of the optimizer", str(updates), INTACT)
        self.step.load_state_dict(checkpoint.optimizer)
        self.step.loss_scale = checkpoint.state.loss_scale
        self.done = done
        try:
            _require_generator_state(checkpoint.optimizer["rng.cpu"])
            torch.set_rng_state(checkpoint.optimizer["rng.cpu"])
            if self.device.type == "cuda" and CUDA_GENERATOR in checkpoint.optimizer:
                torch.cuda.set_rng_state(checkpoint.optimizer[CUDA_GENERATOR], self.device)
        except (RuntimeError, ValueError) as error:
            raise ConfigError("the state of a random number generator", str(error), INTACT) from None


def _require_generator_state(state: Tensor) -> None:
    """Refuse counters that make PyTorch's Mersenne Twister read beyond its 624 words, which torch does not.

    Raises:
        ValueError: the counters are inconsistent.
    """
    left, _, position = struct.unpack_from("<iiQ", state.numpy().tobytes(), 8)
    if left + position != 625 and (left, position) != (1, 0):
        raise ValueError(f"{left} words left at word {position}")


def _step_of(model: nn.Module, config: TrainConfig, device: torch.device, speedups: Collection[str]) -> Step:
    """The step for this model with these speed-ups."""
    if not {"compile", "cuda-graph"}.intersection(speedups):
        return EagerStep(model, config, device, fused="fused-adamw" in speedups)
    mode = "max-autotune-no-cudagraphs" if "max-autotune" in speedups else "default"
    step = FlatStep(model, config, device, mode if "compile" in speedups else None)
    if "cuda-graph" not in speedups:
        return step
    return CudaGraphStep(step, REPLAYED if "replay" in speedups else 1)


@torch.no_grad()
def evaluate(model: nn.Module, data: Dataset, precision: Precision) -> float:
    """Mean loss in nats per character over all of `data`, in evaluation mode, within the free memory.

    The sum over characters divided by their number: a mean of batch means would overweight short batches.
    With weights, each item's sum and number of characters count by its weight.
    """
    config = model.config
    assert isinstance(config, ModelConfig)
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    characters = 0.0
    for batch in data.evaluation(partial(largest_batch, config)):
        real = (batch.targets != IGNORE).sum(1).cpu()  # (B,)
        with precision():
            logits = model(batch.ids)
        if batch.weights is None:
            loss = mean_loss(logits, batch.targets)
            total += loss.cpu().double() * real.sum()  # not every device has float64
            characters += int(real.sum())
        else:
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).transpose(1, 2)  # (B, V, T)
            losses = F.cross_entropy(logits, batch.targets, ignore_index=IGNORE, reduction="none")  # (B, T)
            total += batch.weights @ losses.cpu().double().sum(1)
            characters += (batch.weights @ real.double()).item()
    model.train(was_training)
    return (total / characters).item()
