"""Checks before timing: does a backend train correctly? One that does not is not timed.

Three things are compared with the same computation with `manual` in float64, by the error budget of
`flashmore.measuring.accuracy`, whose plain computation is `manual` in the precision under test:

1. attention alone, output and gradients, at the step's shape, on random inputs. In 16 bits this is the most
   sensitive check: in an untrained model attention is nearly uniform, and rounding hides a wrong scale.
2. the gradients of every parameter in the first step. Autocast keeps them in float32, but computes them in 16
   bits, so the budget uses 16-bit roundings.
3. the losses of the first steps, as one vector. Training amplifies rounding: AdamW turns a tiny gradient into
   a full step of either sign, so single steps may differ by more than their neighbours. A loss is the mean
   over N characters, whose 16-bit roundings average out: its budget is smaller by √N.

Dropout is disabled, because backends draw different random numbers.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from flashmore.backends.contract import attention_accuracy
from flashmore.benchmark.step.data import Task
from flashmore.data.batches import IGNORE, Sequences
from flashmore.errors import ConfigError
from flashmore.measuring.accuracy import Judgement, float64_device, judge, judge_all
from flashmore.training.step import mean_loss
from flashmore.training.trainer import Trainer

STEPS = 20
SCORES = {"cpu": 2**22, "cuda": 2**26, "mps": 2**22}
"""Largest (B, H, T, T) matrix compared with float64; above it, fewer rows, then shorter ones."""
LOSS_SCALE = 1024.0
"""Without loss scaling, float16 gradients underflow."""


@dataclass(frozen=True)
class _Outcome:
    """The results of one backend in one precision, on the CPU."""

    gradients: dict[str, Tensor]
    losses: Tensor


class Gate:
    """Judges backends on one task, against a reference that runs once.

    Args:
        task: model, data and batch, reduced if float64 would take too long.
    """

    def __init__(self, task: Task) -> None:
        B, T = affordable(task)
        rows, length = task.config.batch_size, task.model_config.block_size
        ids, targets = task.data.ids[:, :T], task.data.targets[:, :T]
        self.task = replace(
            task,
            config=replace(task.config, batch_size=B, dropout=0.0, attention_dropout=0.0),
            model_config=replace(task.model_config, dropout=0.0, attention_dropout=0.0),
            data=Sequences(ids, targets, task.data.lengths.clamp(max=T)),
        )
        self.note = None
        if rows > B or length > T:
            self.note = f"answers were checked on {B} row{'s' * (B > 1)} of {T:,} positions"

    def judgements(self, backend: str) -> list[Judgement]:
        """Judge attention alone, all gradients of the first step, and the losses of the first steps.

        Raises:
            BackendUnavailable: the backend cannot run here.
            ConfigError: training fails in float64, so there is no reference.
        """
        reference, plain = self._reference, self._plain
        answer = plain if backend == "manual" else self._run(backend)
        dtype = getattr(torch, self.task.config.dtype)
        eps = torch.finfo(dtype).eps
        gradients = judge_all(answer.gradients, plain.gradients, reference.gradients, eps=eps)
        eps_of_mean = max(torch.finfo(torch.float32).eps, eps / math.sqrt(self._characters))
        losses = judge("losses", answer.losses, plain.losses, reference.losses, eps=eps_of_mean)
        return [*self._attention_alone(backend, dtype), *gradients, losses]

    def _attention_alone(self, backend: str, dtype: torch.dtype) -> tuple[Judgement, ...]:
        device, model_config = self.task.device, self.task.model_config
        B, T, D = (
            self.task.config.batch_size,
            self.task.data.ids.size(1),
            model_config.n_embd // model_config.n_head,
        )
        generator = torch.Generator().manual_seed(0)
        q, k, v = torch.randn(3, B, model_config.n_head, T, D, generator=generator).to(device, dtype)
        return attention_accuracy(backend, q, k, v, causal=True)

    @cached_property
    def _reference(self) -> _Outcome:
        outcome = self._run("manual", double=True)
        if not outcome.losses.isfinite().all():
            found = f"a loss that is not finite within {STEPS} steps, in float64"
            raise ConfigError(
                "a training to hold backends against", found, "a lower --learning-rate, or a --warmup-steps"
            )
        return outcome

    @cached_property
    def _plain(self) -> _Outcome:
        return self._run("manual")

    @cached_property
    def _characters(self) -> int:
        first = self._trainer("manual").batch(0)
        return int((first.targets != IGNORE).sum())

    def _trainer(self, backend: str, *, double: bool = False) -> Trainer:
        task = self.task
        config, device, data = task.config, task.device, task.dataset()
        if double:
            config = replace(config, dtype="float32")
            device = float64_device(device)
            data = data.to(device)
        trainer = Trainer(config, replace(task.model_config, attention=backend), data, device)
        if double:
            trainer.model.double()
        return trainer

    def _run(self, backend: str, *, double: bool = False) -> _Outcome:
        trainer = self._trainer(backend, double=double)
        gradients = first_gradients(trainer)
        losses = [trainer.train_step().cpu() for _ in range(STEPS)]
        return _Outcome(gradients, torch.stack(losses))


def first_gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Gradients of the first batch's loss for every parameter, before clipping, on the CPU."""
    batch = trainer.batch(0)
    scale = LOSS_SCALE if trainer.config.dtype == "float16" else 1.0
    with trainer.step.precision():
        loss = mean_loss(trainer.model(batch.ids, *batch.extra), batch.targets)
    named = dict(trainer.model.named_parameters())
    gradients = torch.autograd.grad(loss * scale, list(named.values()))
    return {name: (g / scale).cpu() for name, g in zip(named, gradients, strict=True)}


def affordable(task: Task) -> tuple[int, int]:
    """The number of rows and positions to compare with float64."""
    B, T = task.config.batch_size, task.model_config.block_size
    most = SCORES[task.device.type] // task.model_config.n_head
    while B > 1 and most < B * T * T:
        B //= 2
    while T > 1 and most < B * T * T:
        T //= 2
    return B, T
