"""One variant of a training step: checked, warmed up, measured for memory, and timed next to the others."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError
from flashmore.measuring.environment import on_battery
from flashmore.measuring.measure import Stopped, alternate, repeats_for
from flashmore.measuring.memory import peak_bytes
from flashmore.measuring.statistics import Spread, ratio, spread
from flashmore.measuring.warnings import MeasurementWarning, load_meter, warnings_about
from flashmore.training.trainer import Trainer

WARMUP = 5
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

    @property
    def ok(self) -> bool:
        """Whether it ran, is correct and was timed."""
        return self.why_not is None

    def warm_up(self, trainer: Trainer, step: Callable[[], object]) -> None:
        """Warm up a step, and measure the memory of one."""
        for _ in range(WARMUP):
            step()
        trainer.model.zero_grad(set_to_none=True)  # so that gradients count towards the step's memory
        self.peak_bytes = peak_bytes(lambda: trainer.train_step().item(), trainer.device)

    def take(self, samples_ms: list[list[float]]) -> None:
        """Fill in the samples of the completed rounds."""
        self.samples_ms = samples_ms
        if samples_ms:
            self.step_ms = spread(samples_ms)
        elif self.ok:
            self.why_not = INTERRUPTED

    def ratio_to(self, other: "Variant", equivalence: float) -> dict[str, str | float]:
        """How many times faster another variant is, as in a record."""
        return ratio(self.samples_ms, other.samples_ms, equivalence).to_json(self.name, other.name)

    def to_json(self) -> dict[str, Any]:
        """The variant as in a record."""
        return {"ok": self.ok} | asdict(self)


def torch_says(error: Exception) -> str:
    """The first line of a RuntimeError of torch, mostly out of memory, which has no exception on the CPU."""
    return f"torch says: {str(error).partition(chr(10))[0]}"


class Rounds:
    """Variants in progress: prepared one after the other, then timed in alternating blocks."""

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        blocks: int,
        say: Callable[[str], None],
        equivalence: float,
    ) -> None:
        if blocks < 1:
            raise ConfigError("a valid --blocks", f"{blocks}", "20 or more")
        if config.threads_here:
            torch.set_num_threads(config.threads_here)
        self.device, self.blocks, self.say, self.equivalence = device, blocks, say, equivalence
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

    def run(self, block_seconds: float, after_block: Callable[[int], None], until: float = math.inf) -> None:
        """Prepare the variants, and time them in alternating blocks that are about equally long.

        A block that takes twice as long ends with what it has. Ctrl-C keeps the completed rounds.

        Args:
            block_seconds: intended length of a block.
            after_block: called with the number of completed rounds.
            until: no round begins after this time of `time.perf_counter`, except the first.
        """
        resolution = time.get_clock_info("perf_counter").resolution
        try:
            self.prepare()
            if not self.steps:
                return
            self.say("timing in alternating blocks")
            repeats = {
                name: repeats_for(step, block_seconds=block_seconds, resolution=resolution)
                for name, step in self.steps.items()
            }
            others = load_meter()
            try:
                self.samples = alternate(
                    self.steps,
                    blocks=self.blocks,
                    repeats=repeats,
                    warmup=0,
                    most_seconds=2 * block_seconds,
                    until=until,
                    after_block=after_block,
                )
            except Stopped as stopped:
                self.samples, self.complete = stopped.samples_ms, False
            threads = torch.get_num_threads() if self.device.type == "cpu" else 1
            self.warnings = warnings_about(
                self.samples, others=others(), threads=threads, battery=on_battery()
            )
        except KeyboardInterrupt:
            self.complete = False
