"""Measures each speed-up of the catalogue, added cumulatively and left out of the full set individually.

The gradients of a variant's first step and the losses of the first steps, as one vector, are compared with
the plain loop's in float64, by the budget of `flashmore.measuring.accuracy`; a variant that misses it is not
timed. The plain computation has the same precision and algorithm, in one process. If a variant is not exact,
its losses may differ; the difference is reported. Dropout is off for this, because compiled code draws
different random numbers.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flashmore.benchmark.ablation.loader import LoadedDataset
from flashmore.benchmark.step.bench import STEPS, Outcome, diverged, first_steps, in_float64
from flashmore.benchmark.step.task import read_items
from flashmore.benchmark.variant import Rounds, Timing, Variant, together
from flashmore.config import TrainConfig
from flashmore.data.batches import encode_items
from flashmore.errors import BackendUnavailable, ConfigError, UsageError
from flashmore.measuring.accuracy import Judgement, float64_device, judge, judge_all
from flashmore.measuring.measure import alternate, repeats_for
from flashmore.measuring.result import make_record
from flashmore.measuring.statistics import EQUIVALENCE, ratio
from flashmore.parallel import ALONE, Ranks
from flashmore.speedups import ALGORITHM, CATALOGUE, EXACT, GROUPS, NUMERICS, Exactness, changed
from flashmore.training.dataset import ItemDataset
from flashmore.training.decide import why_not
from flashmore.training.resolve import resolve_device, resolve_speed
from flashmore.training.trainer import Trainer

BLOCK_SECONDS = 0.15
TRIAL_BLOCKS = 8
SECONDS = 180.0
AT_THE_END = 5
"""Number of last losses whose mean is compared if a set is not exact."""
COMPILING = 40.0
"""Estimated compile time in seconds before the first compilation, on two CPU cores."""
AUTOTUNING = 3.0
"""Factor on the compile time with autotuning."""
ON_A_GPU = 16
"""Steps per sample on a GPU, synchronised once, so that loops without synchronisation and replays of several
steps can show their gain."""
_EPS = {"": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-7}
"""Rounding units of float32, and of matrix products with a speed-up."""
NOT_IN_A_STEP = {"kv-cache": "it speeds up generation, not training"}


@dataclass
class SpeedupVariant(Variant):
    """One set of speed-ups, named after the one that was added or left out."""

    speedups: tuple[str, ...] = ()
    first_step_seconds: float | None = None
    """Time to decide, build, compile and run the first step."""
    loss_difference: float | None = None
    """For an inexact set: its loss after the checked steps minus the plain loop's, in nats."""
    ratio: dict[str, Any] | None = None
    """Against the first variant, as in a record."""
    before: str = ""
    """Name of the variant that it was added to; with one left out, of the full set."""
    ratio_before: dict[str, Any] | None = None
    """Against that variant."""
    kept: bool = True
    """False if its trial was slower than the one before; the next speed-up is then added without it."""
    break_even_steps: int | None = None
    """Steps that make up for a longer first step than that variant's; None: never."""

    @property
    def exactness(self) -> Exactness:
        """Exactness of the set: that of its least exact member."""
        found = {CATALOGUE[name].exactness for name in self.speedups}
        return next((kind for kind in (ALGORITHM, NUMERICS) if kind in found), EXACT)


def ablate(
    config: TrainConfig,
    *,
    leave_one_out: bool = False,
    seconds: float = SECONDS,
    timing: Timing,
) -> dict[str, Any]:
    """Add the speed-ups one at a time, in the catalogue's order, and time all variants in alternating blocks.

    Each addition is first tried against the set before it; if it is slower, the next is added without it.

    Args:
        config: data, model and training parameters. `speedups` selects which to add (`auto` means all);
            options that are speed-ups themselves, such as `attention`, are set for each variant.
        leave_one_out: also leave each one out of the full set.
        seconds: time limit; a variant that would exceed it is left out, with this reason, and the rounds end
            with it.

    Returns:
        A record of kind `ablation`: every variant, the first one without any speed-up, with its numbers or
        the reason why it has none. After Ctrl-C it has the completed rounds and is not `complete`. On several
        ranks, rank 0's counts.

    Raises:
        DataError, ConfigError: see `read_items` and `together`; a speed-up named in the config that cannot
            work here.
        UsageError: no variant could be timed.
    """
    with together(config, timing, seconds=seconds, leave=leave_one_out) as ranks:
        bench = _Bench(config, timing, seconds, leave_one_out, ranks)
        precision = torch.get_float32_matmul_precision()
        try:
            bench.run(BLOCK_SECONDS, until=bench.began + seconds)
        finally:
            torch.set_float32_matmul_precision(precision)
        return bench.record()


class _Bench(Rounds):
    """An ablation in progress."""

    def __init__(
        self, config: TrainConfig, timing: Timing, seconds: float, leave_one_out: bool, ranks: Ranks
    ) -> None:
        super().__init__(config, resolve_device(config.device), timing, ranks)
        self.began, asked = time.perf_counter(), config
        corpus, config, self.model_config = ranks.of_rank_0(lambda: read_items(asked, self.device, ranks))
        self.config, self.seconds, self.leave_one_out = config, seconds, leave_one_out
        self.plain = changed(config, ())
        """The config without speed-ups, to which a variant's are added."""
        self.data = ItemDataset(
            encode_items(corpus.split.train, corpus.vocabulary, corpus.block_size, self.device),
            config.batch_size,
            config.seed,
        )
        self.names, self.left_out = ranks.of_rank_0(
            lambda: added(
                config.speedups, lambda name: why_not(name, self.plain, self.model_config, self.device)
            )
        )
        self.variants: list[SpeedupVariant] = []
        self.alone: list[SpeedupVariant] = []
        self.per_sample = ON_A_GPU if self.device.type == "cuda" else 1
        self.checked = replace(self.plain, dropout=0.0, attention_dropout=0.0)
        """The config for comparing gradients and losses."""
        self.plain_outcomes: dict[tuple[str, ...], Outcome] = {}
        """By speed-ups, in one process."""
        self.compiling = COMPILING
        self.preparing = 0.0
        self.block_seconds = BLOCK_SECONDS
        """Of the longest block so far."""

    def prepare(self) -> None:
        """Build and check every variant, and measure its memory."""
        self.say("training the plain loop in float64")
        # First, so that one-time loading does not count for the first variant.
        self.ranks.of_rank_0(self._train_in_float64)
        last = SpeedupVariant("none")
        self._ready(last, self.variants)
        now: tuple[str, ...] = ()
        for name in self.names:
            missing = [other for other in CATALOGUE[name].needs if other not in now]
            if missing:
                self.left_out.append({"name": name, "why": f"it is part of {', '.join(missing)}"})
                continue
            dropped = [other for other in now if other in CATALOGUE[name].excludes]
            chosen = tuple(one for one in CATALOGUE if one == name or (one in now and one not in dropped))
            variant = SpeedupVariant(name, speedups=chosen, before=last.name)
            if self._fits(variant) and self._ready(variant, self.variants):
                variant.kept = self._pays(last, variant)
                if not variant.kept:
                    self.notes.append(f"{name} is slower here; the following speed-ups are added without it")
                    continue
                last, now = variant, variant.speedups
                if dropped:
                    self.notes.append(f"{name} replaces {', '.join(dropped)}")
        for name in now if self.leave_one_out else ():
            variant = SpeedupVariant(f"without {name}", speedups=without(name, now), before=last.name)
            if self._fits(variant):
                self._ready(variant, self.alone)

    def record(self) -> dict[str, Any]:
        """The results so far."""
        for variant in (*self.variants, *self.alone):
            self.take(variant.name, variant, self.per_sample)
        compare(self.variants, self.alone, self.timing.equivalence)
        if self.complete and not any(variant.ok for variant in self.variants):
            why = "; ".join(f"{variant.name}: {variant.why_not}" for variant in self.variants)
            valid = "a smaller --batch-size or model"
            raise self.ranks.common(UsageError("at least one variant that can be timed", why, valid))
        body = {
            "config": self.config.to_json(),
            "context": self.model_config.block_size,
            "batch": self.config.batch_size,
            "characters_a_step": self.data.tokens_a_batch,
            "checked_steps": STEPS,
            "time_budget_s": self.seconds,
            "variants": [self._told(variant) for variant in self.variants],
            "left_out_alone": [self._told(variant) for variant in self.alone],
            "left_out": self.left_out,
            "notes": [*self.notes, *["results were checked without dropout"] * (self.checked != self.plain)],
            "warnings": self.warnings,
        }
        return make_record("ablation", self.device, body, complete=self.complete)

    def _told(self, variant: SpeedupVariant) -> dict[str, Any]:
        step_ms = variant.step_ms
        return variant.to_json() | {
            "speedups": list(variant.speedups),
            "exactness": variant.exactness,
            "characters_per_s": step_ms and 1000 * self.data.tokens_a_batch / step_ms.median,
        }

    def _train_in_float64(self) -> None:
        """Make the plain loop's first steps, the reference; of several ranks, rank 0 alone has it."""
        trainer = in_float64(self._trainer(self.checked, (), float64_device(self.device)))
        self.reference = first_steps(trainer)
        if not self.reference.losses.isfinite().all():
            raise diverged("variants")

    def _trainer(
        self, config: TrainConfig, names: tuple[str, ...], device: torch.device, ranks: Ranks = ALONE
    ) -> Trainer:
        """A trainer with these speed-ups; of several ranks, rank 0 chooses the attention backend."""
        model_config = replace(
            self.model_config, dropout=config.dropout, attention_dropout=config.attention_dropout
        )
        data = self.data.to(device)
        if "resident" not in names:
            data = LoadedDataset(data)
        resolved = ranks.of_rank_0(lambda: resolve_speed(changed(config, names), model_config, device, data))
        return replace(resolved, device=device).trainer(data, ranks)

    def _ready(self, variant: SpeedupVariant, among: list[SpeedupVariant]) -> bool:
        """Add a variant, and make its step a synchronised call; False if its results are not correct."""
        among.append(variant)
        self.say(f"preparing {variant.name}")
        self.agree(0.0)
        # The TF32 switch is global: a variant without TF32 must not be timed with another's setting.
        precision = "high" if "tf32" in variant.speedups else "highest"
        torch.set_float32_matmul_precision(precision)
        began = time.perf_counter()
        try:
            trainer = self._trainer(self.plain, variant.speedups, self.device, self.ranks)
            first_loss = trainer.train_step()
            first_loss.item()
            variant.first_step_seconds = self.agree(time.perf_counter() - began)
            if "compile" in variant.speedups:
                self.compiling = variant.first_step_seconds
            self._judge(variant, trainer, first_loss)
            if variant.ok:
                never_waits = "no-sync" in variant.speedups

                def step_of(trainer: Trainer) -> Callable[[], object]:
                    def step() -> float:
                        torch.set_float32_matmul_precision(precision)
                        end = trainer.done + self.per_sample
                        while trainer.done < end:
                            loss = trainer.train_step(end - trainer.done)
                            if not never_waits:
                                loss.item()
                        return loss.item()

                    return step

                self.add(variant.name, variant, trainer, step_of)
        except BackendUnavailable as error:
            if self.ranks.connected:  # on rank 0 alone, which chooses the backend
                raise
            variant.why_not = "; ".join(error.reasons)
        except (RuntimeError, MemoryError) as error:
            self.fail(variant, error)
        finally:
            if "compile" not in variant.speedups:
                self.preparing = time.perf_counter() - began
        return variant.ok

    def _judge(self, variant: SpeedupVariant, trainer: Trainer, first_loss: Tensor) -> None:
        """Fill in the share of the budget used, the loss difference, or why the variant is not timed.

        Args:
            trainer: has made one step, with this loss; it is reused if the config has no dropout.
        """
        if self.checked != self.plain:
            outcome = first_steps(self._trainer(self.checked, variant.speedups, self.device, self.ranks))
        else:
            outcome = first_steps(trainer, first_loss)
        found = self.ranks.of_rank_0(lambda: self._verdict(variant, outcome))
        variant.why_not, variant.budget_used, variant.loss_difference = found

    def _verdict(
        self, variant: SpeedupVariant, outcome: Outcome
    ) -> tuple[str | None, float | None, float | None]:
        """Why a variant is not timed, the share of the budget used, and the loss difference."""
        judgements = self._judgements(variant, outcome)
        worst = max(judgements, key=lambda judgement: (not judgement.good, judgement.budget_used))
        if not worst.good:
            error = f"the error of {worst.name} is {worst.error:.2g}, its budget {worst.budget:.2g}"
            return f"its results differ from the plain loop's: {error}", None, None
        if variant.exactness == EXACT:
            return None, worst.budget_used, None
        if not outcome.losses.isfinite().all():
            return f"its loss is not finite within {STEPS} steps", None, None
        difference = outcome.losses[-AT_THE_END:].mean() - self.reference.losses[-AT_THE_END:].mean()
        return None, None, difference.item()

    def _judgements(self, variant: SpeedupVariant, outcome: Outcome) -> list[Judgement]:
        """Judge all gradients of the first step and, of an exact variant, the losses of the first steps."""
        same = tuple(name for name in variant.speedups if CATALOGUE[name].exactness != EXACT)
        if same not in self.plain_outcomes:
            self.plain_outcomes[same] = first_steps(self._trainer(self.checked, same, self.device))
        plain, reference = self.plain_outcomes[same], self.reference
        sizes = {name: tuple(map(slice, value.shape)) for name, value in reference.gradients.items()}
        # A vocabulary may be padded.
        gradients = {name: value[sizes[name]] for name, value in outcome.gradients.items()}
        eps = max(_EPS.get(name, 0.0) for name in ("", *same))
        judgements = [*judge_all(gradients, plain.gradients, reference.gradients, eps=eps)]
        if variant.exactness == EXACT:
            judgements.append(judge("losses", outcome.losses, plain.losses, reference.losses, eps=eps))
        return judgements

    def _pays(self, before: SpeedupVariant, variant: SpeedupVariant) -> bool:
        """Whether a speed-up stays: unless a short trial finds it slower than the set before it."""
        if before.name not in self.steps:
            return True
        steps = {name: self.steps[name] for name in (before.name, variant.name)}
        repeats = {
            name: repeats_for(step, block_seconds=BLOCK_SECONDS, resolution=0.0, agree=self.agree)
            for name, step in steps.items()
        }
        samples = alternate(
            steps, blocks=TRIAL_BLOCKS, repeats=repeats, warmup=0, most_seconds=2 * BLOCK_SECONDS,
            agree=self.agree,
        )  # fmt: skip
        every = [*samples[before.name], *samples[variant.name]]
        self.block_seconds = max(self.block_seconds, *(sum(block) / 1000 for block in every))
        return ratio(samples[before.name], samples[variant.name], self.timing.equivalence).verdict != "slower"

    def _fits(self, variant: SpeedupVariant) -> bool:
        """Whether a variant fits into the remaining time; if not, it is left out with this reason."""
        why = self.ranks.of_rank_0(lambda: self._too_long(variant))
        if why is not None:
            self.left_out.append({"name": variant.name, "why": why})
        return why is None

    def _too_long(self, variant: SpeedupVariant) -> str | None:
        """Why a variant does not fit into the remaining time; None if it does."""
        copies = 1 + (self.ranks.connected and not self.ranks.shards(self.config))  # one without exchange
        left = self.seconds - (time.perf_counter() - self.began)
        rounds = self.timing.blocks + 4
        left -= ((len(self.steps) + copies) * rounds + 2 * TRIAL_BLOCKS) * self.block_seconds
        needed = self.preparing
        if "compile" in variant.speedups:
            needed += copies * self.compiling
        if variant.name == "max-autotune":
            needed = AUTOTUNING * max(copies * COMPILING, needed)
        if needed <= left:
            return None
        return f"preparing it would take about {needed:.0f} s, and {max(0, left):.0f} s are left (--seconds)"


def compare(
    variants: Sequence[SpeedupVariant], alone: Sequence[SpeedupVariant], equivalence: float = EQUIVALENCE
) -> None:
    """Fill in the ratios and break-even steps."""
    timed = {variant.name: variant for variant in variants if variant.ok}
    for variant in [*[*timed.values()][1:], *(one for one in alone if one.ok and timed)]:
        first = next(iter(timed.values()))
        before = timed.get(variant.before, first)
        variant.ratio = first.ratio_to(variant, equivalence)
        variant.ratio_before = before.ratio_to(variant, equivalence)
        if variant.name in timed:
            variant.break_even_steps = break_even(before, variant)


def break_even(before: SpeedupVariant, variant: SpeedupVariant) -> int | None:
    """Steps that make up for a longer first step; None if a step is not faster."""
    assert before.step_ms is not None
    assert variant.step_ms is not None
    assert variant.ratio_before is not None
    saved_ms = before.step_ms.median - variant.step_ms.median
    if variant.ratio_before["verdict"] != "faster" or saved_ms <= 0:
        return None
    cost_ms = 1000 * ((variant.first_step_seconds or 0.0) - (before.first_step_seconds or 0.0))
    return max(0, -int(-cost_ms // saved_ms))


def added(
    asked: tuple[str, ...], why_not: Callable[[str], str | None]
) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The speed-ups to add, in the catalogue's order, and those that cannot be, as in a record.

    Args:
        asked: names, or the groups `exact`, `all` and `auto`, which means all here.
        why_not: returns why a speed-up cannot work here, or None.

    Raises:
        ConfigError: an unknown name, one requested by name that cannot be added, or nothing to add.
    """
    named = {name for name in asked if name not in GROUPS}
    for name in named - set(CATALOGUE):
        raise ConfigError("the name of a speed-up", f"'{name}'", ", ".join(CATALOGUE))
    everything = "all" in asked or "auto" in asked
    names, left_out = [], []
    for name, entry in CATALOGUE.items():
        in_a_group = everything or ("exact" in asked and entry.exactness == EXACT)
        if name not in named and not in_a_group:
            continue
        why = NOT_IN_A_STEP.get(name) or why_not(name)
        if why is None:
            names.append(name)
        elif name in named:
            raise ConfigError(f"the speed-up {name} in the ablation", why, "--speedups exact or all")
        else:
            left_out.append({"name": name, "why": why})
    if not names:
        found = f"--speedups {' '.join(asked)}"
        raise ConfigError("at least one speed-up to add", found, ", ".join(("exact", "all", *CATALOGUE)))
    return tuple(names), left_out


def without(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names without one speed-up and those that require it."""
    return tuple(other for other in names if other != name and name not in CATALOGUE[other].needs)
