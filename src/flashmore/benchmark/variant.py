"""One variant of a training step: checked, warmed up, measured for memory, and timed next to the others."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, FlashmoreError
from flashmore.measuring.environment import on_battery
from flashmore.measuring.measure import Stopped, alternate, repeats_for
from flashmore.measuring.memory import peak_bytes
from flashmore.measuring.statistics import EQUIVALENCE, Spread, ratio, spread
from flashmore.measuring.warnings import MeasurementWarning, load_meter, warnings_about
from flashmore.parallel import Ranks, connected, is_of_a_lost_rank
from flashmore.ranks import local_world_size
from flashmore.training.dataset import ItemDataset
from flashmore.training.signals import stop_signals
from flashmore.training.trainer import Trainer

WARMUP = 5
APART = "{}, without exchange"
"""Name of a variant's step in which the ranks exchange nothing."""
INTERRUPTED = "interrupted before it was timed"


@dataclass
class Variant:
    """The numbers of a variant, or why it has none."""

    name: str
    why_not: str | None = None
    budget_used: float | None = None
    """The largest error as a share of its budget; above 1 the variant is not timed."""
    peak_bytes: int | None = None
    """Of one step, gradients included, beyond the weights and the optimizer's moments."""
    step_ms: Spread | None = None
    samples_ms: list[list[float]] = field(default_factory=list)
    apart_ms: list[list[float]] = field(default_factory=list)
    """Samples without exchange; empty for a single rank or a sharded model."""

    @property
    def ok(self) -> bool:
        """Whether it ran, is correct and was timed."""
        return self.why_not is None

    def ratio_to(self, other: "Variant", equivalence: float) -> dict[str, str | float]:
        """How many times faster another variant is, as in a record."""
        return ratio(self.samples_ms, other.samples_ms, equivalence).to_json(self.name, other.name)

    def to_json(self) -> dict[str, Any]:
        """The variant as in a record."""
        told = {"ok": self.ok} | asdict(self)
        del told["apart_ms"]
        if not self.apart_ms:
            return told
        found = ratio(self.samples_ms, self.apart_ms)
        ends = {"share": found.value, "low": found.low, "high": found.high}
        shares = {name: 1 - 1 / value for name, value in ends.items()}
        return told | {"communication": shares | {"samples_ms": self.apart_ms}}


def torch_says(error: Exception) -> str:
    """The first line of a RuntimeError of torch, mostly out of memory, which has no exception on the CPU."""
    return f"torch says: {str(error).partition(chr(10))[0]}"


@contextmanager
def together(config: TrainConfig, timing: "Timing", **options: Any) -> Iterator[Ranks]:
    """The ranks that measure together, if torchrun started several, all with the same options.

    Raises:
        ConfigError: see `connected`; other options on another rank.
    """
    with connected(config.device) as ranks:
        alike = {"blocks": timing.blocks, "equivalence": timing.equivalence}
        ranks.require_alike({**config.to_json(), **options, **alike})
        yield ranks


@dataclass(frozen=True)
class Timing:
    """How variants are timed, and who is told."""

    blocks: int
    """Blocks of each variant."""
    equivalence: float = EQUIVALENCE
    """Differences up to this many percent count as no difference."""
    say: Callable[[str], None] = lambda _: None
    """Called with each preparation step."""
    after_block: Callable[[int], None] = lambda _: None
    """Called with the number of completed rounds."""


class Rounds:
    """Variants in progress: prepared one after the other, then timed in alternating blocks.

    Several ranks prepare and time the same variants in the same order: whatever depends on times or on the
    machine is decided by what `agree` and `Ranks.of_rank_0` return to all of them. All ranks begin each step
    together, and a sample is the time of the slowest.
    """

    def __init__(self, config: TrainConfig, device: torch.device, timing: Timing, ranks: Ranks) -> None:
        if timing.blocks < 1:
            raise ranks.common(ConfigError("a valid --blocks", f"{timing.blocks}", "20 or more"))
        if config.threads_here:
            torch.set_num_threads(config.threads_here)
        self.device, self.timing, self.ranks, self.say = device, timing, ranks, timing.say
        self._stopped: Callable[[], int] = lambda: 0
        self.steps: dict[str, Callable[[], object]] = {}
        """One repetition of each variant to time, synchronised."""
        self.samples: dict[str, list[list[float]]] = {}
        self.notes: list[str] = []
        self.warnings: list[MeasurementWarning] = []
        self.complete = True
        """False after Ctrl-C."""

    def prepare(self) -> None:
        """Fill in `steps`."""
        raise NotImplementedError

    def agree(self, seconds: float) -> float:
        """The longest of all ranks' times.

        Raises:
            KeyboardInterrupt: on every rank, if a signal has reached one of several.
        """
        longest, stop = self.ranks.largest(seconds, self._stopped())
        if stop:
            raise KeyboardInterrupt
        return longest

    def add(
        self,
        key: str,
        variant: Variant,
        trainer: Trainer,
        step_of: Callable[[Trainer], Callable[[], object]],
    ) -> None:
        """Warm up a variant's step, measure its memory, and let it be timed; if ranks exchange, also without.

        Args:
            key: its name in `steps`.
            variant: it has passed its checks.
            trainer: of this step.
            step_of: makes one repetition of a trainer's steps, synchronised.
        """
        self.steps[key] = _warm(step_of(trainer))
        trainer.model.zero_grad(set_to_none=True)  # so that gradients count towards the step's memory
        variant.peak_bytes = peak_bytes(lambda: trainer.train_step().item(), trainer.device)
        if self.ranks.connected and not trainer.sharded:  # a sharded model cannot compute without exchange
            assert isinstance(trainer.data, ItemDataset)
            ranks, data = replace(self.ranks, connected=False), trainer.data.to(self.device)
            apart = Trainer(trainer.config, trainer.model_config, data, self.device, trainer.speedups, ranks)
            self.steps[APART.format(key)] = _warm(step_of(apart))

    def fail(self, variant: Variant, error: Exception) -> None:
        """Note that a variant is not timed because of an error of torch.

        Raises:
            FlashmoreError: on several ranks, of which the others cannot go on without this one.
        """
        why = torch_says(error)
        if self.ranks.connected:
            if is_of_a_lost_rank(error):
                raise error
            valid = "other variants, a smaller --batch-size or model, or fewer ranks"
            raise FlashmoreError(f"a step of {variant.name} on every rank", why, valid) from None
        variant.why_not = why

    def take(self, key: str, variant: Variant, per_sample: int = 1) -> None:
        """Give a variant its samples; each is that of several steps."""
        variant.samples_ms, variant.apart_ms = (
            [[sample / per_sample for sample in block] for block in self.samples.get(name, [])]
            for name in (key, APART.format(key))
        )
        if variant.samples_ms:
            variant.step_ms = spread(variant.samples_ms)
        elif variant.ok:
            variant.why_not = INTERRUPTED

    def _cpu_seconds(self) -> float:
        """CPU seconds of this process and the other ranks on its machine; right on rank 0's."""
        every = torch.zeros(self.ranks.size, dtype=torch.float64)
        every[self.ranks.rank] = time.process_time()
        return self.ranks.total(every)[: local_world_size()].sum().item()

    def run(self, block_seconds: float, until: float = math.inf) -> None:
        """Prepare the variants, and time them in alternating blocks that are about equally long.

        A block that takes twice as long ends with what it has. Ctrl-C keeps the completed rounds; on
        several ranks, so does any other signal that stops a training.

        Args:
            block_seconds: intended length of a block.
            until: no round begins after this time of `time.perf_counter`, except the first.
        """
        resolution = time.get_clock_info("perf_counter").resolution
        signals = stop_signals() if self.ranks.connected else nullcontext(lambda: 0)
        try:
            with signals as self._stopped:
                self.prepare()
                if not self.steps:
                    return
                self.say("timing in alternating blocks")
                repeats = {
                    name: repeats_for(
                        step, block_seconds=block_seconds, resolution=resolution, agree=self.agree
                    )
                    for name, step in self.steps.items()
                }
                others = load_meter(self._cpu_seconds)
                try:
                    self.samples = alternate(
                        self.steps,
                        blocks=self.timing.blocks,
                        repeats=repeats,
                        warmup=0,
                        most_seconds=2 * block_seconds,
                        until=until,
                        agree=self.agree,
                        after_block=self.timing.after_block,
                    )
                except Stopped as stopped:
                    self.samples, self.complete = stopped.samples_ms, False
                threads = torch.get_num_threads() * local_world_size() if self.device.type == "cpu" else 1
                self.warnings = warnings_about(
                    self.samples, others=others(), threads=threads, battery=on_battery()
                )
        except KeyboardInterrupt:
            self.complete = False


def _warm(step: Callable[[], object]) -> Callable[[], object]:
    """A step after a few calls."""
    for _ in range(WARMUP):
        step()
    return step
