"""What each speed-up of the catalogue brings: added one after the other, and left out of all of them alone.

Every variant is built, timed at its first step, held against the plain loop (`gate`), measured for
memory, and then timed with all the others in alternating blocks.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from flashmore.benchmark.ablation.gate import AblationGate
from flashmore.benchmark.ablation.sets import START, LeftOut, added, without
from flashmore.benchmark.ablation.variant import Variant, compare
from flashmore.benchmark.step.bench import INTERRUPTED, WARMUP
from flashmore.data.batches import Sequences, encode_items
from flashmore.errors import BackendUnavailable, RecipeError
from flashmore.measuring.environment import others_cpu_seconds
from flashmore.measuring.measure import Stopped, alternate, repeats_for
from flashmore.measuring.memory import peak_bytes
from flashmore.measuring.statistics import spread
from flashmore.measuring.warnings import MeasurementWarning, warnings_about
from flashmore.speedups import CATALOGUE, Speedups
from flashmore.training.decide import why_not
from flashmore.training.plan import settle_speed
from flashmore.training.recipe import Recipe
from flashmore.training.setting import Setting, settle
from flashmore.training.trainer import Trainer

BLOCKS = 20
BLOCK_SECONDS = 0.15
SECONDS = 180.0
COMPILING = 40.0
"""Seconds that compiling is expected to take before it was seen, on two CPU cores."""
AUTOTUNING = 3.0
"""Times as long with every candidate kernel tried out."""
ON_A_GPU = 16
"""Steps to a sample on a GPU, waited for once: a loop that never waits, or a replay of several steps, must be
able to show it."""


@dataclass(frozen=True)
class Ablation:
    """All variants, the first one without any speed-up."""

    setting: Setting
    recipe: Recipe
    seconds: float
    """About how long all was allowed to take."""
    characters: float
    """Real characters a step, on average."""
    variants: tuple[Variant, ...]
    left_out_alone: tuple[Variant, ...]
    left_out: tuple[LeftOut, ...]
    """Speed-ups that are in no variant."""
    notes: tuple[str, ...]
    warnings: tuple[MeasurementWarning, ...]
    complete: bool


def ablate(
    recipe: Recipe,
    *,
    leave_one_out: bool = False,
    blocks: int = BLOCKS,
    seconds: float = SECONDS,
    say: Callable[[str], None] = lambda _: None,
    after_block: Callable[[int], None] = lambda _: None,
) -> Ablation:
    """Add the speed-ups one after the other, in the catalogue's order, and time all variants in turn.

    Args:
        recipe: data, model and training parameters. `speedups` says which to add (`auto` means all); what
            the ablation varies must be `auto`: attention, dtype, optimizer and schedule.
        leave_one_out: also leave each one alone out of the last variant's.
        blocks: of each variant.
        seconds: about how long all may take; a variant that would not fit is left out, with this reason.
        say: is told what happens before the timing.
        after_block: is told how many rounds are done.

    Returns:
        Every variant with its numbers or the reason why it has none. After Ctrl-C those of the whole rounds
        so far, and not `complete`.

    Raises:
        DataError, RecipeError: see `flashmore.training.setting.settle`; a speed-up named in the recipe that
            cannot work here.
    """
    if blocks < 1:
        raise RecipeError("a sensible --blocks", f"{blocks}", "20 or more")
    bench = _Climb(recipe, blocks, seconds, say)
    precision = torch.get_float32_matmul_precision()
    try:
        bench.prepare(leave_one_out=leave_one_out)
        bench.time(after_block)
    except KeyboardInterrupt:
        bench.complete = False
    finally:
        torch.set_float32_matmul_precision(precision)
    return bench.result()


class _Climb:
    """One ablation as it goes along."""

    def __init__(self, recipe: Recipe, blocks: int, seconds: float, say: Callable[[str], None]) -> None:
        if recipe.threads_here:
            torch.set_num_threads(recipe.threads_here)
        self.began = time.perf_counter()
        self.recipe, self.blocks, self.seconds, self.say = recipe, blocks, seconds, say
        self.setting = settle(recipe)
        setting = self.setting
        self.data: Sequences = encode_items(
            setting.split.train, setting.vocabulary, setting.config.block_size, setting.device
        )
        self.names, self.left_out = added(
            recipe.speedups, lambda name: why_not(name, self._base(), setting.config, setting.device)
        )
        self.variants: list[Variant] = []
        self.alone: list[Variant] = []
        self.steps: dict[str, Callable[[], object]] = {}
        self.per_sample = ON_A_GPU if setting.device.type == "cuda" else 1
        self.gate = AblationGate(self._base(), self._trainer, self.setting.device)
        self.compiling = COMPILING
        self.preparing = 0.0
        self.notes: list[str] = []
        self.warnings: tuple[MeasurementWarning, ...] = ()
        self.complete = True

    def prepare(self, *, leave_one_out: bool) -> None:
        """Build, check and measure for memory every variant."""
        self.say("training the plain loop in float64")
        self.gate.prepare()  # first: what a process loads only once is not the first variant's
        self.variants.append(Variant(START, ()))
        self._ready(self.variants[0])
        now: tuple[str, ...] = ()
        for name in self.names:
            missing = [other for other in CATALOGUE[name].needs if other not in now]
            if missing:
                self.left_out.append(LeftOut(name, f"it is a part of {', '.join(missing)}"))
                continue
            dropped = [other for other in now if other in CATALOGUE[name].excludes]
            variant = Variant(name, Speedups.of((set(now) - set(dropped)) | {name}).names)
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
        """Time everything that is left in turn."""
        if not self.steps:
            return
        resolution = time.get_clock_info("perf_counter").resolution
        repeats = {
            name: repeats_for(run, block_seconds=BLOCK_SECONDS, resolution=resolution)
            for name, run in self.steps.items()
        }
        self.say("timing in turn")
        began, others_before = time.perf_counter(), others_cpu_seconds()
        try:
            samples = alternate(
                self.steps, blocks=self.blocks, repeats=repeats, warmup=0,
                most_seconds=2 * BLOCK_SECONDS, after_block=after_block,
            )  # fmt: skip
        except Stopped as stopped:
            samples, self.complete = stopped.samples_ms, False
        seconds, others_after = time.perf_counter() - began, others_cpu_seconds()
        others = None
        if others_before is not None and others_after is not None:
            others = (others_after - others_before) / seconds
        self.warnings = warnings_about(
            samples,
            others=others,
            cpus=os.cpu_count() or 1,
            threads=torch.get_num_threads() if self.setting.device.type == "cpu" else 1,
        )
        for variant in (*self.variants, *self.alone):
            blocks = samples.get(variant.name, [])
            variant.samples_ms = [[sample / self.per_sample for sample in block] for block in blocks]

    def result(self) -> Ablation:
        """What was found so far."""
        for variant in (*self.variants, *self.alone):
            if variant.samples_ms:
                variant.step_ms = spread(variant.samples_ms)
            elif variant.ok:
                variant.why_not = INTERRUPTED
        compare(self.variants, self.alone)
        return Ablation(
            setting=self.setting,
            recipe=self.recipe,
            seconds=self.seconds,
            characters=self.data.mean_length * self.recipe.batch_size,
            variants=tuple(self.variants),
            left_out_alone=tuple(self.alone),
            left_out=tuple(self.left_out),
            notes=(*self.notes, *self.gate.notes),
            warnings=self.warnings,
            complete=self.complete,
        )

    def _base(self) -> Recipe:
        """Nothing chosen: a variant's names alone decide."""
        return replace(self.recipe, speedups=("none",))

    def _trainer(self, recipe: Recipe, names: tuple[str, ...], device: torch.device) -> Trainer:
        setting = self.setting
        config = replace(setting.config, dropout=recipe.dropout, attention_dropout=recipe.attention_dropout)
        asked = replace(recipe, speedups=names or ("none",))
        data = self.data.to(device)
        return settle_speed(asked, config, device, data).trainer(data)

    def _ready(self, variant: Variant) -> None:
        """Make a variant's step a call that waits for the device, if its answers are right."""
        self.say(f"preparing {variant.name}")
        # One switch for the whole process: a variant without TF32 must not be timed with that of another.
        precision = "high" if "tf32" in variant.speedups else "highest"
        torch.set_float32_matmul_precision(precision)
        began = time.perf_counter()
        try:
            trainer = self._trainer(self._base(), variant.speedups, self.setting.device)
            first_loss = trainer.advance().item()
            variant.first_step_seconds = time.perf_counter() - began
            if "compile" in variant.speedups:
                self.compiling = variant.first_step_seconds
            self.gate.judge(variant, trainer, first_loss)
            if not variant.ok:
                return

            def step() -> float:
                torch.set_float32_matmul_precision(precision)
                end = trainer.done + self.per_sample
                while trainer.done < end:
                    loss = trainer.advance(end - trainer.done)
                return loss.item()

            for _ in range(WARMUP):
                step()
            trainer.model.zero_grad(set_to_none=True)  # so that the gradients count as the step's own
            variant.peak_bytes = peak_bytes(lambda: trainer.advance().item(), self.setting.device)
            self.steps[variant.name] = step
        except BackendUnavailable as error:
            variant.why_not = "; ".join(error.reasons)
        except (RuntimeError, MemoryError) as error:  # torch: out of memory, or nothing that it can compile
            variant.why_not = f"torch says: {str(error).partition(chr(10))[0]}"
        finally:
            if "compile" not in variant.speedups:
                self.preparing = time.perf_counter() - began

    def _would_not_fit(self, variant: Variant) -> bool:
        """Leave out what would take more time than is left, and say so."""
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
