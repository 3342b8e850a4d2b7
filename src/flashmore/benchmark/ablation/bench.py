"""Measures each speed-up of the catalogue, added cumulatively and left out of the full set individually.

For every variant the first step is timed, results are compared with the plain loop (`gate`), and memory is
measured; then all variants are timed in alternating blocks.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from flashmore.benchmark.ablation.gate import AblationGate
from flashmore.benchmark.ablation.loader import LoadedDataset
from flashmore.benchmark.ablation.sets import START, LeftOut, added, in_order, without
from flashmore.benchmark.ablation.variant import Variant, compare
from flashmore.benchmark.step.bench import INTERRUPTED, WARMUP
from flashmore.benchmark.step.data import read_items
from flashmore.config import TrainConfig
from flashmore.data.batches import encode_items
from flashmore.errors import BackendUnavailable, ConfigError
from flashmore.measuring.memory import peak_bytes
from flashmore.measuring.statistics import spread
from flashmore.measuring.timing import time_in_turn
from flashmore.measuring.warnings import MeasurementWarning
from flashmore.speedups import CATALOGUE, changed
from flashmore.training.dataset import ItemDataset
from flashmore.training.decide import why_not
from flashmore.training.resolve import resolve_device, resolve_model, resolve_speed
from flashmore.training.trainer import Trainer

BLOCKS = 20
BLOCK_SECONDS = 0.15
SECONDS = 180.0
COMPILING = 40.0
"""Estimated compile time in seconds before the first compilation, on two CPU cores."""
AUTOTUNING = 3.0
"""Factor on the compile time with autotuning."""
ON_A_GPU = 16
"""Steps per sample on a GPU, synchronised once, so that loops without synchronisation and replays of several
steps can show their gain."""


@dataclass(frozen=True)
class Ablation:
    """All variants, the first one without any speed-up."""

    device: torch.device
    config: TrainConfig
    block_size: int
    """Context length T."""
    seconds: float
    """Approximate time limit."""
    characters: float
    """Mean number of real characters per step."""
    variants: tuple[Variant, ...]
    left_out_alone: tuple[Variant, ...]
    left_out: tuple[LeftOut, ...]
    """Speed-ups without a variant."""
    notes: tuple[str, ...]
    warnings: tuple[MeasurementWarning, ...]
    complete: bool


def ablate(
    config: TrainConfig,
    *,
    leave_one_out: bool = False,
    blocks: int = BLOCKS,
    seconds: float = SECONDS,
    say: Callable[[str], None] = lambda _: None,
    after_block: Callable[[int], None] = lambda _: None,
) -> Ablation:
    """Add the speed-ups one at a time, in the catalogue's order, and time all variants in alternating blocks.

    Args:
        config: data, model and training parameters. `speedups` selects which to add (`auto` means all);
            options that are speed-ups themselves, such as `attention`, are set for each variant.
        leave_one_out: also leave each one out of the full set.
        blocks: blocks per variant.
        seconds: approximate time limit; a variant that would exceed it is left out, with this reason.
        say: called with a description of each preparation step.
        after_block: called with the number of completed rounds.

    Returns:
        Every variant with its numbers or the reason why it has none. After Ctrl-C, the completed rounds, and
        not `complete`.

    Raises:
        DataError, ConfigError: see `flashmore.training.corpus.read_corpus`; a speed-up named in the config
            that cannot work here.
    """
    if blocks < 1:
        raise ConfigError("a sensible --blocks", f"{blocks}", "20 or more")
    bench = _Bench(config, blocks, seconds, say)
    precision = torch.get_float32_matmul_precision()
    try:
        bench.prepare(leave_one_out=leave_one_out)
        bench.time(after_block)
    except KeyboardInterrupt:
        bench.complete = False
    finally:
        torch.set_float32_matmul_precision(precision)
    return bench.result()


class _Bench:
    """An ablation in progress."""

    def __init__(self, config: TrainConfig, blocks: int, seconds: float, say: Callable[[str], None]) -> None:
        if config.threads_here:
            torch.set_num_threads(config.threads_here)
        self.began = time.perf_counter()
        self.config, self.blocks, self.seconds, self.say = config, blocks, seconds, say
        self.device = resolve_device(config.device)
        corpus = read_items(config)
        self.model_config = resolve_model(self._base(), corpus)
        self.data = ItemDataset(
            encode_items(corpus.split.train, corpus.vocabulary, corpus.block_size, self.device),
            config.batch_size,
            config.seed,
        )
        self.names, self.left_out = added(
            config.speedups, lambda name: why_not(name, self._base(), self.model_config, self.device)
        )
        self.variants: list[Variant] = []
        self.alone: list[Variant] = []
        self.steps: dict[str, Callable[[], object]] = {}
        self.per_sample = ON_A_GPU if self.device.type == "cuda" else 1
        self.gate = AblationGate(self._base(), self._trainer, self.device)
        self.compiling = COMPILING
        self.preparing = 0.0
        self.notes: list[str] = []
        self.warnings: tuple[MeasurementWarning, ...] = ()
        self.complete = True

    def prepare(self, *, leave_one_out: bool) -> None:
        """Build and check every variant, and measure its memory."""
        self.say("training the plain loop in float64")
        self.gate.prepare()  # first, so that one-time loading does not count for the first variant
        self.variants.append(Variant(START, ()))
        self._ready(self.variants[0])
        now: tuple[str, ...] = ()
        for name in self.names:
            missing = [other for other in CATALOGUE[name].needs if other not in now]
            if missing:
                self.left_out.append(LeftOut(name, f"it is a part of {', '.join(missing)}"))
                continue
            dropped = [other for other in now if other in CATALOGUE[name].excludes]
            variant = Variant(name, in_order((set(now) - set(dropped)) | {name}))
            if self._would_not_fit(variant):
                continue
            self.variants.append(variant)
            self._ready(variant)
            if variant.ok:
                now = variant.speedups
                if dropped:
                    self.notes.append(f"{name} stands in place of {', '.join(dropped)}")
        for name in now if leave_one_out else ():
            variant = Variant(f"without {name}", without(name, now))
            if not self._would_not_fit(variant):
                self.alone.append(variant)
                self._ready(variant)

    def time(self, after_block: Callable[[int], None]) -> None:
        """Time the remaining variants in alternating blocks."""
        if not self.steps:
            return
        self.say("timing in turn")
        timing = time_in_turn(
            self.steps,
            blocks=self.blocks,
            block_seconds=BLOCK_SECONDS,
            threads=torch.get_num_threads() if self.device.type == "cpu" else 1,
            after_block=after_block,
        )
        samples, self.warnings, self.complete = timing.samples_ms, timing.warnings, timing.complete
        for variant in (*self.variants, *self.alone):
            blocks = samples.get(variant.name, [])
            variant.samples_ms = [[sample / self.per_sample for sample in block] for block in blocks]

    def result(self) -> Ablation:
        """The results so far."""
        for variant in (*self.variants, *self.alone):
            if variant.samples_ms:
                variant.step_ms = spread(variant.samples_ms)
            elif variant.ok:
                variant.why_not = INTERRUPTED
        compare(self.variants, self.alone)
        return Ablation(
            device=self.device,
            config=self.config,
            block_size=self.model_config.block_size,
            seconds=self.seconds,
            characters=self.data.tokens_a_batch,
            variants=tuple(self.variants),
            left_out_alone=tuple(self.alone),
            left_out=tuple(self.left_out),
            notes=(*self.notes, *self.gate.notes),
            warnings=self.warnings,
            complete=self.complete,
        )

    def _base(self) -> TrainConfig:
        """The config without speed-ups, to which a variant's are added."""
        return changed(self.config, ())

    def _trainer(self, config: TrainConfig, names: tuple[str, ...], device: torch.device) -> Trainer:
        model_config = replace(
            self.model_config, dropout=config.dropout, attention_dropout=config.attention_dropout
        )
        data = self.data.to(device)
        if "resident" not in names:
            data = LoadedDataset(data)
        return resolve_speed(changed(config, names), model_config, device, data).trainer(data)

    def _ready(self, variant: Variant) -> None:
        """Make a variant's step a synchronised call, if its results are correct."""
        self.say(f"preparing {variant.name}")
        # The TF32 switch is global: a variant without TF32 must not be timed with another's setting.
        precision = "high" if "tf32" in variant.speedups else "highest"
        torch.set_float32_matmul_precision(precision)
        began = time.perf_counter()
        try:
            trainer = self._trainer(self._base(), variant.speedups, self.device)
            first_loss = trainer.train_step().item()
            variant.first_step_seconds = time.perf_counter() - began
            if "compile" in variant.speedups:
                self.compiling = variant.first_step_seconds
            self.gate.judge(variant, trainer, first_loss)
            if not variant.ok:
                return

            never_waits = "no-sync" in variant.speedups

            def step() -> float:
                torch.set_float32_matmul_precision(precision)
                end = trainer.done + self.per_sample
                while trainer.done < end:
                    loss = trainer.train_step(end - trainer.done)
                    if not never_waits:
                        loss.item()
                return loss.item()

            for _ in range(WARMUP):
                step()
            trainer.model.zero_grad(set_to_none=True)  # so that gradients count towards the step's memory
            variant.peak_bytes = peak_bytes(lambda: trainer.train_step().item(), self.device)
            self.steps[variant.name] = step
        except BackendUnavailable as error:
            variant.why_not = "; ".join(error.reasons)
        except (RuntimeError, MemoryError) as error:  # torch: out of memory, or compilation failed
            variant.why_not = f"torch says: {str(error).partition(chr(10))[0]}"
        finally:
            if "compile" not in variant.speedups:
                self.preparing = time.perf_counter() - began

    def _would_not_fit(self, variant: Variant) -> bool:
        """Leave out a variant that would exceed the remaining time, and say so."""
        left = self.seconds - (time.perf_counter() - self.began)
        left -= (len(self.steps) + 1) * (self.blocks + 4) * BLOCK_SECONDS
        needed = self.preparing
        if "compile" in variant.speedups:
            needed += self.compiling
        if variant.name == "max-autotune":
            needed = AUTOTUNING * max(COMPILING, needed)
        if needed <= left:
            return False
        why = f"it would take about {needed:.0f} s to prepare, and {max(0, left):.0f} s are left (--seconds)"
        self.left_out.append(LeftOut(variant.name, why))
        return True
