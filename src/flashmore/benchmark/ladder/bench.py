"""What each speed-up of the catalogue brings: added one after the other, and left out of all of them alone.

Every rung is built, timed at its first step, held against the plain loop (`gate`), measured for
memory, and then timed with all the others in alternating blocks.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from flashmore.benchmark.ladder.gate import LadderGate
from flashmore.benchmark.ladder.rung import Rung, compare
from flashmore.benchmark.ladder.sets import START, LeftOut, added, without
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
class Ladder:
    """All rungs, the first one without any speed-up."""

    setting: Setting
    recipe: Recipe
    seconds: float
    """About how long all was allowed to take."""
    characters: float
    """Real characters a step, on average."""
    rungs: tuple[Rung, ...]
    left_out_alone: tuple[Rung, ...]
    left_out: tuple[LeftOut, ...]
    """Speed-ups that are in no rung."""
    notes: tuple[str, ...]
    warnings: tuple[MeasurementWarning, ...]
    complete: bool


def climb(
    recipe: Recipe,
    *,
    leave_one_out: bool = False,
    blocks: int = BLOCKS,
    seconds: float = SECONDS,
    say: Callable[[str], None] = lambda _: None,
    after_block: Callable[[int], None] = lambda _: None,
) -> Ladder:
    """Add the speed-ups one after the other, in the catalogue's order, and time all rungs in turn.

    Args:
        recipe: data, model and training parameters. `speedups` says which to add (`auto` means all); what
            the ladder varies must be `auto`: attention, dtype, optimizer and schedule.
        leave_one_out: also leave each one alone out of the last rung's.
        blocks: of each rung.
        seconds: about how long all may take; a rung that would not fit is left out, with this reason.
        say: is told what happens before the timing.
        after_block: is told how many rounds are done.

    Returns:
        Every rung with its numbers or the reason why it has none. After Ctrl-C those of the whole rounds so
        far, and not `complete`.

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
    """One ladder as it goes along."""

    def __init__(self, recipe: Recipe, blocks: int, seconds: float, say: Callable[[str], None]) -> None:
        if recipe.threads_here:
            torch.set_num_threads(recipe.threads_here)
        self.began = time.perf_counter()
        self.recipe, self.blocks, self.seconds, self.say = recipe, blocks, seconds, say
        self.setting = settle(recipe)
        setting = self.setting
        self.data: Sequences = encode_items(
            setting.split.train, setting.vocabulary, setting.config.context, setting.device
        )
        self.names, self.left_out = added(
            recipe.speedups, lambda name: why_not(name, self._base(), setting.config, setting.device)
        )
        self.rungs: list[Rung] = []
        self.alone: list[Rung] = []
        self.steps: dict[str, Callable[[], object]] = {}
        self.per_sample = ON_A_GPU if setting.device.type == "cuda" else 1
        self.gate = LadderGate(self._base(), self._trainer, self.setting.device)
        self.compiling = COMPILING
        self.preparing = 0.0
        self.notes: list[str] = []
        self.warnings: tuple[MeasurementWarning, ...] = ()
        self.complete = True

    def prepare(self, *, leave_one_out: bool) -> None:
        """Build, check and measure for memory every rung."""
        self.say("training the plain loop in float64")
        self.gate.prepare()  # first: what a process loads only once is not the first rung's
        self.rungs.append(Rung(START, ()))
        self._ready(self.rungs[0])
        now: tuple[str, ...] = ()
        for name in self.names:
            missing = [other for other in CATALOGUE[name].needs if other not in now]
            if missing:
                self.left_out.append(LeftOut(name, f"it is a part of {', '.join(missing)}"))
                continue
            dropped = [other for other in now if other in CATALOGUE[name].excludes]
            rung = Rung(name, Speedups.of((set(now) - set(dropped)) | {name}).names)
            if self._would_not_fit(rung):
                continue
            self.rungs.append(rung)
            self._ready(rung)
            if rung.ok:
                now = rung.speedups
                if dropped:
                    self.notes.append(f"{name} stands in place of {', '.join(dropped)}")
        for name in now if leave_one_out else ():
            rung = Rung(f"without {name}", without(name, now))
            if not self._would_not_fit(rung):
                self.alone.append(rung)
                self._ready(rung)

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
        for rung in (*self.rungs, *self.alone):
            blocks = samples.get(rung.name, [])
            rung.samples_ms = [[sample / self.per_sample for sample in block] for block in blocks]

    def result(self) -> Ladder:
        """What was found so far."""
        for rung in (*self.rungs, *self.alone):
            if rung.samples_ms:
                rung.step_ms = spread(rung.samples_ms)
            elif rung.ok:
                rung.why_not = INTERRUPTED
        compare(self.rungs, self.alone)
        return Ladder(
            setting=self.setting,
            recipe=self.recipe,
            seconds=self.seconds,
            characters=self.data.mean_length * self.recipe.batch,
            rungs=tuple(self.rungs),
            left_out_alone=tuple(self.alone),
            left_out=tuple(self.left_out),
            notes=(*self.notes, *self.gate.notes),
            warnings=self.warnings,
            complete=self.complete,
        )

    def _base(self) -> Recipe:
        """Nothing chosen: a rung's names alone decide."""
        return replace(self.recipe, speedups=("none",))

    def _trainer(self, recipe: Recipe, names: tuple[str, ...], device: torch.device) -> Trainer:
        setting = self.setting
        config = replace(setting.config, dropout=recipe.dropout, attention_dropout=recipe.attention_dropout)
        asked = replace(recipe, speedups=names or ("none",))
        data = self.data.to(device)
        return settle_speed(asked, config, device, data).trainer(data)

    def _ready(self, rung: Rung) -> None:
        """Make a rung's step a call that waits for the device, if its answers are right."""
        self.say(f"preparing {rung.name}")
        # One switch for the whole process: a rung without TF32 must not be timed with that of another.
        precision = "high" if "tf32" in rung.speedups else "highest"
        torch.set_float32_matmul_precision(precision)
        began = time.perf_counter()
        try:
            trainer = self._trainer(self._base(), rung.speedups, self.setting.device)
            first_loss = trainer.advance().item()
            rung.first_step_seconds = time.perf_counter() - began
            if "compile" in rung.speedups:
                self.compiling = rung.first_step_seconds
            self.gate.judge(rung, trainer, first_loss)
            if not rung.ok:
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
            rung.peak_bytes = peak_bytes(lambda: trainer.advance().item(), self.setting.device)
            self.steps[rung.name] = step
        except BackendUnavailable as error:
            rung.why_not = "; ".join(error.reasons)
        except (RuntimeError, MemoryError) as error:  # torch: out of memory, or nothing that it can compile
            rung.why_not = f"torch says: {str(error).partition(chr(10))[0]}"
        finally:
            if "compile" not in rung.speedups:
                self.preparing = time.perf_counter() - began

    def _would_not_fit(self, rung: Rung) -> bool:
        """Leave out what would take more time than is left, and say so."""
        left = self.seconds - (time.perf_counter() - self.began)
        left -= (len(self.steps) + 1) * (self.blocks + 4) * BLOCK_SECONDS
        needed = self.preparing
        if "compile" in rung.speedups:
            needed += self.compiling
        if rung.name == "max-autotune":
            needed = AUTOTUNING * max(COMPILING, needed)
        if needed <= left:
            return False
        why = f"it would take about {needed:.0f} s to prepare, and {max(0, left):.0f} s are left (--seconds)"
        self.left_out.append(LeftOut(rung.name, why))
        return True
