"""A model with its optimizer and its data, that can make one step after the other."""

import struct
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from flashmore.data.batches import BatchOrder, Sequences
from flashmore.data.windows import Windows
from flashmore.errors import RecipeError
from flashmore.files import INTACT
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.runs import Checkpoint, LossScale
from flashmore.speedups import Speedups
from flashmore.training.batch import Batch, packed, padded, trimmed
from flashmore.training.capture import CapturedStep
from flashmore.training.graph import FlatStep
from flashmore.training.loader import Items, item_by_item
from flashmore.training.optimizers import learning_rate_share
from flashmore.training.recipe import Recipe
from flashmore.training.step import Precision, Step

USUAL = Speedups(resident=True, fused_adamw=True, no_sync=True, attention=True)
"""What a comparison of attention alone stands on: rows as the model gets them, nothing slow around them."""
CUDA_GENERATOR = "rng.cuda"
"""Name of the random numbers' state on CUDA, which a run that was saved on a CPU has not."""
REPLAYED = 8
"""Updates in one replay of a CUDA graph."""


class AnyStep(Protocol):
    """What makes an update: `Step`, `FlatStep` or `CapturedStep`."""

    precision: Precision

    def __call__(self, batch: Batch, lr: float, muon_lr: float = 0.0) -> Tensor:
        """Update the weights once; the loss before."""
        ...

    loss_scale: LossScale | None
    """Of float16; None where the loss is not scaled."""

    def state_dict(self) -> dict[str, Tensor]:
        """The optimizer's tensors by the names that every kind of step shares; see `ADAMW_MOMENTS`."""
        ...

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to where `state_dict` was taken."""
        ...


class Trainer:
    """Model, optimizer and order of the data, all decided by the recipe's seed.

    Args:
        recipe: how to train.
        config: the model's sizes; `attention` names a backend that runs on `device`.
        data: what is learned, on `device`.
        device: where.
        speedups: how the steps are made; what it says of attention, precision and the algorithm is already in
            `config` and `recipe`.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: ModelConfig,
        data: Sequences | Windows,
        device: torch.device,
        speedups: Speedups = USUAL,
    ) -> None:
        if recipe.threads_here:
            torch.set_num_threads(recipe.threads_here)
        if speedups.tf32:
            torch.set_float32_matmul_precision("high")
        torch.manual_seed(recipe.seed)  # dropout; the initial weights have a generator of their own
        self.recipe = recipe
        self.config = config
        self.device = device
        self.speedups = speedups
        self.model = build(config, recipe.seed).to(device)
        self.model.train()
        self.step = _step_of(self.model, recipe, device, speedups)
        self.data = data
        self._order = (
            BatchOrder(len(data.ids), recipe.batch_size, recipe.seed) if isinstance(data, Sequences) else None
        )
        # What a DataLoader is given is in the machine's memory, and made an item at a time.
        self._items = Items(data) if isinstance(data, Sequences) and not speedups.resident else None
        self.done = 0
        """Updates made so far."""

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0, on the device."""
        if isinstance(self.data, Windows):
            return Batch(*self.data.random(step, self.recipe.batch_size, self.recipe.seed))
        assert self._order is not None
        indices = self._order.indices(step)
        if self._items is not None:
            return item_by_item(self._items, indices, self.device, trim=self.speedups.trim)
        form = packed if self.speedups.pack else trimmed if self.speedups.trim else padded
        return form(self.data, indices)

    def advance(self, most: int = 1) -> Tensor:
        """Make one update; or as many as one replay of a CUDA graph holds, if that is not above `most`.

        Returns:
            The loss of the last step's batch before its update, a scalar on the device: reading it waits.
        """
        if isinstance(self.step, CapturedStep) and self.step.most <= most:
            steps = range(self.done, self.done + self.step.most)
            loss = self.step.replay(
                [self.batch(step) for step in steps], [self._rates(step) for step in steps]
            )
            self.done += len(steps)
        else:
            loss = self.step(self.batch(self.done), *self._rates(self.done))
            self.done += 1
        if not self.speedups.no_sync:
            loss.item()
        return loss

    def _rates(self, step: int) -> tuple[float, float]:
        """The learning rates of AdamW and of Muon in the update that follows so many."""
        share = learning_rate_share(step, self.recipe)
        return share * self.recipe.learning_rate, share * self.recipe.muon_learning_rate

    def optimizer_state(self) -> dict[str, Tensor]:
        """The tensors that decide the next steps apart from the weights: optimizer and random numbers."""
        state = self.step.state_dict() | {"rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state[CUDA_GENERATOR] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was taken; its weights are in the model already.

        Raises:
            RecipeError: more updates of the optimizer than steps, or random numbers that no generator of
                PyTorch's made.
        """
        updates, done = checkpoint.optimizer["step"].item(), checkpoint.state.step
        if not 0 <= updates <= done:
            raise RecipeError(f"0 to {done} updates of the optimizer", str(updates), INTACT)
        self.step.load_state_dict(checkpoint.optimizer)
        self.step.loss_scale = checkpoint.state.loss_scale
        self.done = done
        try:
            _require_generator_state(checkpoint.optimizer["rng.cpu"])
            torch.set_rng_state(checkpoint.optimizer["rng.cpu"])
            if self.device.type == "cuda" and CUDA_GENERATOR in checkpoint.optimizer:
                torch.cuda.set_rng_state(checkpoint.optimizer[CUDA_GENERATOR], self.device)
        except (RuntimeError, ValueError) as error:
            raise RecipeError("the state of a random number generator", str(error), INTACT) from None


def _require_generator_state(state: Tensor) -> None:
    """Refuse counters with which PyTorch's Mersenne Twister reads beyond its 624 words; it checks each alone.

    Raises:
        ValueError: the counters do not belong together.
    """
    left, _, position = struct.unpack_from("<iiQ", state.numpy().tobytes(), 8)
    if left + position != 625 and (left, position) != (1, 0):
        raise ValueError(f"{left} words left at word {position}")


def _step_of(model: nn.Module, recipe: Recipe, device: torch.device, speedups: Speedups) -> AnyStep:
    """What makes the updates of this model, by the speed-ups that are on."""
    if not speedups.compile and not speedups.cuda_graph:
        return Step(model, recipe, device, fused=speedups.fused_adamw)
    mode = "max-autotune-no-cudagraphs" if speedups.max_autotune else "default"
    step = FlatStep(model, recipe, device, mode if speedups.compile else None)
    if not speedups.cuda_graph:
        return step
    return CapturedStep(step, REPLAYED if speedups.replay else 1)
