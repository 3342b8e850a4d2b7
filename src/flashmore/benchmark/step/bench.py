"""Benchmarks whole training steps with different attention backends: same model, data and seed.

Attention alone is timed in the same rounds: its share of a step bounds the gain of any kernel (Amdahl 1967).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashmore.backends.contract import attention_accuracy
from flashmore.benchmark.attention.plan import SHARE_OF_FREE
from flashmore.benchmark.step.task import Task, activation_bytes, attention_alone, task_at
from flashmore.benchmark.variant import Rounds, Timing, Variant, together
from flashmore.config import TrainConfig
from flashmore.data.batches import IGNORE, Sequences
from flashmore.errors import BackendUnavailable, ConfigError, UsageError
from flashmore.measuring.accuracy import Judgement, float64_device, judge, judge_all
from flashmore.measuring.result import make_record
from flashmore.measuring.statistics import ratio
from flashmore.measuring.warnings import MeasurementWarning
from flashmore.memory import free_bytes
from flashmore.models.config import ModelConfig
from flashmore.models.registry import parameters_of
from flashmore.parallel import ALONE, Ranks
from flashmore.runs import LossScale
from flashmore.training.optimizers import ADAMW_MOMENTS, MUON_MOMENTS, MUON_MOMENTUM
from flashmore.training.resolve import TRAINED_BYTES, resolve_attention, resolve_device
from flashmore.training.step import EagerStep
from flashmore.training.trainer import Trainer

BLOCK_SECONDS = 0.2
DEFAULT: tuple[str, ...] = ("manual", "flash")
INSTEAD_OF_FLASH: tuple[str, ...] = ("efficient", "cudnn", "sdpa")
ATTENTION_ALONE = "attention alone"
SHORT = 256
MIB = 2**20
STEPS = 20
SCORES = {"cpu": 2**22, "cuda": 2**26, "mps": 2**22}
"""Largest (B, H, T, T) matrix compared with float64; above it, fewer rows, then shorter ones."""
LOSS_SCALE = LossScale(1024.0, 0)
"""Without loss scaling float16 gradients underflow, and with PyTorch's first scale they may overflow."""


def bench_steps(
    config: TrainConfig,
    variants: Sequence[str] | None = None,
    contexts: Sequence[int] = (),
    *,
    shrink_batch: bool = True,
    timing: Timing,
) -> dict[str, Any]:
    """Time training steps of the config's Transformer under each backend, in alternating blocks.

    Args:
        config: data, model and training parameters, the same for all; its `attention` is ignored.
        variants: backends; the first is the baseline. A name may be repeated. None means `manual` and
            `flash`, or another fused backend if flash cannot run. `auto` is resolved first and listed under
            the name that it chose.
        contexts, shrink_batch: see `task_at`; no context means the data's own.

    Returns:
        A record of kind `step`: every variant with its numbers or the reason why it has none. After Ctrl-C it
        has the completed rounds and is not `complete`. On several ranks, rank 0's counts.

    Raises:
        DataError, ConfigError: see `task_at` and `together`.
        UsageError: no variant could be timed at any context.
    """
    found: list[dict[str, Any]] = []
    warnings: list[MeasurementWarning] = []
    complete = True
    with together(config, timing, variants=variants, lengths=contexts) as ranks:
        for context in contexts or (None,):
            task = task_at(config, context, shrink_batch=shrink_batch, ranks=ranks)
            bench = _Bench(task, variants, timing)
            bench.run(BLOCK_SECONDS)
            found.append(bench.result())
            where = f"context {found[-1]['context']:,}: " if len(contexts) > 1 else ""
            warnings += [{**warning, "message": where + warning["message"]} for warning in bench.warnings]
            complete = bench.complete
            if not complete:
                break
        tried = [variant for one in found for variant in one["variants"]]
        if complete and not any(variant["ok"] for variant in tried):
            why = sorted({f"{variant['name']}: {variant['why_not']}" for variant in tried})
            valid = "other --variants, a smaller --batch-size or --lengths"
            raise ranks.common(UsageError("at least one variant that can be timed", "; ".join(why), valid))
    body = {"config": config.to_json(), **found[0], "further_contexts": found[1:], "warnings": warnings}
    return make_record("step", resolve_device(config.device), body, complete=complete)


class _Bench(Rounds):
    """A comparison at one context in progress."""

    def __init__(self, task: Task, names: Sequence[str] | None, timing: Timing) -> None:
        super().__init__(task.config, task.device, timing, task.ranks)
        self.task, self.names = task, names
        self.gate = Gate(task)
        self.notes += task.notes
        self.variants: dict[str, Variant] = {}
        """By name, numbered from its second time on."""

    def prepare(self) -> None:
        """Refuse or check every variant, and measure its memory."""
        names = self.ranks.of_rank_0(lambda: [self._settled(name) for name in self.names or self._default()])
        for number, name in enumerate(names):
            times = 1 + names[:number].count(name)
            self.variants[name if times == 1 else f"{name} ({times})"] = Variant(name)
        check = cache(self._check)  # a name may be repeated
        for key, variant in self.variants.items():
            self.say(f"checking {variant.name} at context {self.task.model_config.block_size:,}")
            self.agree(0.0)
            try:
                variant.why_not, variant.budget_used = check(variant.name)
                if variant.ok:
                    self._ready(key, variant)
            except (RuntimeError, MemoryError) as error:
                self.fail(variant, error)
        if self.gate.note and any(variant.budget_used is not None for variant in self.variants.values()):
            self.notes.append(self.gate.note)
        if timed := [variant for variant in self.variants.values() if variant.ok]:
            rows = self.task.config.batch_size // self.ranks.size
            own = replace(self.task, config=replace(self.task.config, batch_size=rows))
            self.steps[ATTENTION_ALONE] = attention_alone(timed[0].name, own)

    def result(self) -> dict[str, Any]:
        """The results so far, as in a record."""
        for key, variant in self.variants.items():
            self.take(key, variant)
        timed = [variant for variant in self.variants.values() if variant.ok]
        alone = self.samples.get(ATTENTION_ALONE, [])
        share = ratio(alone, timed[0].samples_ms) if timed else None
        return {
            "context": self.task.model_config.block_size,
            "batch": self.task.config.batch_size,
            "variants": [variant.to_json() for variant in self.variants.values()],
            "ratios": [timed[0].ratio_to(other, self.timing.equivalence) for other in timed[1:]],
            "attention_samples_ms": alone,
            "attention_share": share and share.value,
            "attention_share_low": share and share.low,
            "attention_share_high": share and share.high,
            "most_gain": most_gain(share.value) if share else None,
            "notes": self.notes,
        }

    def _default(self) -> tuple[str, ...]:
        """Manual and fused: flash, or else the first fused backend that runs here."""
        # One short row is enough to know, and takes no memory that was not estimated.
        model_config = self.task.model_config
        short = replace(model_config, block_size=min(model_config.block_size, SHORT))
        config = replace(self.task.config, batch_size=1)
        reasons = self._reasons("flash", config, short)
        for name in INSTEAD_OF_FLASH if reasons else ():
            if not self._reasons(name, config, short):
                self.notes.append(f"{name} in place of flash, which cannot run here: {'; '.join(reasons)}")
                return (DEFAULT[0], name)
        return DEFAULT

    def _settled(self, name: str) -> str:
        """The backend for a name: resolves and reports `auto`, outside the timing."""
        if name != "auto":
            return name
        choice = resolve_attention(name, self.task.config, self.task.model_config, self.task.device)
        assert choice is not None  # the model attends
        self.notes.append(f"auto is {choice.backend}: {choice.why}")
        self.say(self.notes[-1])
        return choice.backend

    def _reasons(self, name: str, config: TrainConfig, model_config: ModelConfig) -> tuple[str, ...]:
        """Why a backend cannot run here; empty if it can."""
        try:
            resolve_attention(name, config, model_config, self.device)
        except BackendUnavailable as error:
            return error.reasons
        return ()

    def _check(self, name: str) -> tuple[str | None, float | None]:
        """Why a backend is not timed, or None and the share of the error budget that it uses."""
        if refused := self.ranks.of_rank_0(lambda: self._refusal(name)):
            return refused, None
        judgements = self.gate.judgements(name)
        bad = [judgement for judgement in judgements if not judgement.good]
        if not bad:
            return None, max(judgement.budget_used for judgement in judgements)
        worst = max(bad, key=lambda judgement: judgement.budget_used)
        found = f"the error of {worst.name} is {worst.error:.2g}, its budget {worst.budget:.2g}"
        count = f"({len(bad)} of {len(judgements)} checks failed)"
        return f"its error is too large for its precision: {found} {count}", None

    def _refusal(self, name: str) -> str | None:
        """Why a backend is not even checked: too little memory, or it cannot run; None if it can."""
        task, free = self.task, SHARE_OF_FREE * free_bytes(self.device)
        config = replace(task.config, batch_size=task.rows)
        needed = activation_bytes(
            name, task.model_config, config, device=self.device.type, threads=torch.get_num_threads()
        )
        weights = TRAINED_BYTES * parameters_of(task.model_config)
        sharded = self.ranks.shards(config)
        needed += weights // self.ranks.size if sharded else weights * (1 + self.ranks.connected)
        if needed > free:
            return f"it needs about {needed / MIB:,.0f} MiB, and {free / MIB:,.0f} MiB are available"
        return "; ".join(self._reasons(name, config, task.model_config)) or None

    def _ready(self, key: str, variant: Variant) -> None:
        """Make one training step a synchronised call."""
        task, model_config = self.task, replace(self.task.model_config, attention=variant.name)
        trainer = Trainer(task.config, model_config, task.dataset(), self.device, ranks=self.ranks)
        self.add(key, variant, trainer, lambda trainer: lambda: trainer.train_step().item())


def most_gain(share: float) -> float | None:
    """Upper bound of the speed-up if attention, with this share of a step, took no time (Amdahl's law)."""
    return 1 / (1 - share) if share < 1 else None


class Outcome(NamedTuple):
    """The results of one variant in one precision, on the CPU of rank 0; see `first_steps`."""

    gradients: dict[str, Tensor]
    losses: Tensor


class Gate:
    """Checks before timing: a backend that does not train correctly is not timed.

    Three things are compared with `manual` in float64, by the budget of `flashmore.measuring.accuracy`, whose
    plain computation is `manual` in the precision under test. Several ranks share the steps under test, and
    rank 0 alone makes those that they are compared with.

    1. attention alone, output and gradients, at the step's shape, on random inputs. In 16 bits this is the
       most sensitive: in an untrained model attention is nearly uniform, and rounding hides a wrong scale.
    2. the gradients of every parameter in the first step, which autocast computes in 16 bits.
    3. the losses of the first steps, as one vector: AdamW turns a tiny gradient into a full step of either
       sign. A loss is the mean over N characters, whose roundings average out: its budget is smaller by √N.

    The task is reduced if float64 would take too long, and has no dropout, because backends draw different
    random numbers. The reference runs once.
    """

    def __init__(self, task: Task) -> None:
        B, T = affordable(task)
        rows, length = task.config.batch_size, task.model_config.block_size
        ids, targets = task.data.ids[:, :T], task.data.targets[:, :T]
        self.ranks = task.ranks
        self.task = replace(
            task,
            config=replace(task.config, batch_size=B, dropout=0.0, attention_dropout=0.0),
            model_config=replace(task.model_config, dropout=0.0, attention_dropout=0.0),
            data=Sequences(ids, targets, task.data.lengths.clamp(max=T)),
        )
        self.note = None
        if rows > B or length > T:
            self.note = f"results were checked on {B} row{'s' * (B > 1)} of {T:,} positions"

    def judgements(self, backend: str) -> list[Judgement]:
        """Judge attention alone, all gradients of the first step, and the losses of the first steps.

        Raises:
            BackendUnavailable: the backend cannot run here.
            ConfigError: training fails in float64, so there is no reference.
        """
        is_plain = backend == "manual" and not self.ranks.connected
        answer = self._plain if is_plain else first_steps(self._trainer(backend, self.ranks))
        return self.ranks.of_rank_0(lambda: self._judged(backend, answer))

    def _judged(self, backend: str, answer: Outcome) -> list[Judgement]:
        reference, plain = self._reference, self._plain
        dtype = getattr(torch, self.task.config.dtype)
        eps = torch.finfo(dtype).eps
        gradients = judge_all(answer.gradients, plain.gradients, reference.gradients, eps=eps)
        characters = int((self.task.dataset().batch(0).targets != IGNORE).sum())
        eps_of_mean = max(torch.finfo(torch.float32).eps, eps / math.sqrt(characters))
        losses = judge("losses", answer.losses, plain.losses, reference.losses, eps=eps_of_mean)
        return [*self._attention_alone(backend, dtype), *gradients, losses]

    def _attention_alone(self, backend: str, dtype: torch.dtype) -> tuple[Judgement, ...]:
        B, T, H = self.task.config.batch_size, self.task.data.ids.size(1), self.task.model_config.n_head
        size = (B, H, T, self.task.model_config.n_embd // H)
        qkv = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
        q, k, v = qkv.to(self.task.device, dtype)
        return attention_accuracy(backend, q, k, v, causal=True)

    @cached_property
    def _reference(self) -> Outcome:
        outcome = first_steps(self._trainer("manual", double=True))
        if not outcome.losses.isfinite().all():
            raise diverged("backends")
        return outcome

    @cached_property
    def _plain(self) -> Outcome:
        return first_steps(self._trainer("manual"))

    def _trainer(self, backend: str, ranks: Ranks = ALONE, *, double: bool = False) -> Trainer:
        task = self.task
        model_config, data = replace(task.model_config, attention=backend), task.dataset()
        if not double:
            return Trainer(task.config, model_config, data, task.device, ranks=ranks)
        device = float64_device(task.device)
        config = replace(task.config, dtype="float32")
        return in_float64(Trainer(config, model_config, data.to(device), device))


def in_float64(trainer: Trainer) -> Trainer:
    """The trainer with its model in float64, and an optimizer of the parameters that the conversion made."""
    trainer.step = EagerStep(trainer.model.double(), trainer.config, trainer.device, fused=False)
    return trainer


def diverged(what: str) -> ConfigError:
    """The error for training that fails even in float64, so that there is no reference."""
    found = f"a loss that is not finite within {STEPS} steps, in float64"
    valid = "a lower --learning-rate, or more --warmup-steps"
    return ConfigError(f"a reference to check {what} against", found, valid)


def first_steps(trainer: Trainer, first_loss: Tensor | None = None) -> Outcome:
    """Make the first `STEPS` steps, together with the other ranks that share their batches.

    Args:
        trainer: has made no step, or the first one.
        first_loss: what that step returned.

    Returns:
        The gradients of all parameters in the first step, after clipping, and the losses of all steps. The
        gradients are those that the optimizer received: its first moments began at zero.
    """
    if first_loss is None:
        if trainer.config.dtype == "float16":
            trainer.step.loss_scale = LOSS_SCALE
        first_loss = trainer.train_step()
    decays = {ADAMW_MOMENTS[0]: trainer.config.beta1, MUON_MOMENTS[0]: MUON_MOMENTUM}
    state = trainer.optimizer_state()
    gradients = {
        name: state[f"{moment}.{name}"].cpu() / (1 - decay)
        for name, _ in trainer.model.named_parameters()
        for moment, decay in decays.items()
        if f"{moment}.{name}" in state
    }
    losses = [trainer.total(first_loss), *(trainer.total(trainer.train_step()) for _ in range(STEPS - 1))]
    return Outcome(gradients, torch.tensor(losses, dtype=torch.float64))


def affordable(task: Task) -> tuple[int, int]:
    """The number of rows and positions to compare with float64."""
    B, T = task.config.batch_size, task.model_config.block_size
    most, slices = SCORES[task.device.type] // task.model_config.n_head, task.config.batch_size // task.rows
    while slices < B and most < B * T * T:
        B = max(slices, B // 2 // slices * slices)
    while T > 1 and most < B * T * T:
        T //= 2
    return B, T
