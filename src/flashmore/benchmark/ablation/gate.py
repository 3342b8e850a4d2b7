"""Checks before timing: does a variant train like the plain loop? An exact one that does not is not timed.

The losses of the first steps, as one vector, are compared with the plain loop's in float64, by the error
budget of `flashmore.measuring.accuracy`, whose plain computation is the plain loop in float32. A set that
changes the numerics or the algorithm gives a different loss; the difference is reported with its time.
Dropout is disabled, because compiled code draws different random numbers.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from flashmore.benchmark.ablation.variants import SpeedupVariant
from flashmore.benchmark.step.gate import STEPS, diverged
from flashmore.config import TrainConfig
from flashmore.measuring.accuracy import float64_device, judge
from flashmore.speedups import EXACT
from flashmore.training.trainer import Trainer

AT_THE_END = 5
"""Number of last losses whose mean is compared if a set is not exact."""
Build = Callable[[TrainConfig, tuple[str, ...], torch.device], Trainer]


class AblationGate:
    """Judges variants of one config.

    Args:
        config: the config without speed-ups.
        build: builds a trainer from a config, names of speed-ups and a device.
        device: the variants' device.
    """

    def __init__(self, config: TrainConfig, build: Build, device: torch.device) -> None:
        self.config = replace(config, dropout=0.0, attention_dropout=0.0)
        self.build = build
        self.device = device
        self.has_dropout = self.config != config
        self.notes = ["answers were checked without dropout"] if self.has_dropout else []

    def prepare(self) -> None:
        """Train the plain loop in float64 and in float32.

        Raises:
            ConfigError: it diverges in float64, so there is no reference.
        """
        trainer = self.build(self.config, (), float64_device(self.device))
        trainer.model.double()
        self._reference = losses_of(trainer)
        if not self._reference.isfinite().all():
            raise diverged("variants")
        self._plain = losses_of(self.build(self.config, (), self.device)).float()

    def judge(self, variant: SpeedupVariant, trainer: Trainer, first_loss: float) -> None:
        """Fill in the share of the budget used, the loss difference, or why the variant is not timed.

        Args:
            variant: the variant to judge.
            trainer: its trainer after the first step, which is reused if the config has no dropout.
            first_loss: the loss of that step.
        """
        if self.has_dropout:
            losses = losses_of(self.build(self.config, variant.speedups, self.device))
        else:
            losses = losses_of(trainer, first_loss)
        if variant.exactness == EXACT:
            found = judge("losses", losses.float(), self._plain, self._reference)
            if found.good:
                variant.budget_used = found.budget_used
            else:
                error = f"the error of its first {STEPS} losses is {found.error:.2g}"
                variant.why_not = f"not the plain loop: {error}, and the budget {found.budget:.2g}"
        elif losses.isfinite().all():
            difference = losses[-AT_THE_END:].mean() - self._reference[-AT_THE_END:].mean()
            variant.loss_difference = difference.item()
        else:
            variant.why_not = f"its loss is not finite within {STEPS} steps"


def losses_of(trainer: Trainer, *losses: float) -> Tensor:
    """The losses of the first `STEPS` steps, of which some are known: (STEPS,) float64 on the CPU."""
    further = [trainer.train_step().item() for _ in range(STEPS - len(losses))]
    return torch.tensor([*losses, *further], dtype=torch.float64)
