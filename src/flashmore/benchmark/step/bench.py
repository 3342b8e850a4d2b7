"""Benchmarks whole training steps with different attention backends: same model, data and seed.

Each variant is refused with a reason, or checked (`gate`), measured for memory, and then timed with the
others in alternating blocks. Attention alone is timed in the same rounds: its share of the step bounds the
gain of any kernel (Amdahl 1967).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from flashmore.benchmark.attention.budget import SHARE_OF_FREE
from flashmore.benchmark.step.attention import attention_alone
from flashmore.benchmark.step.data import Task, task_at
from flashmore.benchmark.step.gate import Gate
from flashmore.benchmark.step.memory import activation_bytes, weights_bytes
from flashmore.config import TrainConfig
from flashmore.errors import BackendUnavailable, ConfigError
from flashmore.measuring.memory import peak_bytes
from flashmore.measuring.statistics import Ratio, RatioBetween, Spread, ratio, spread
from flashmore.measuring.timing import time_in_turn
from flashmore.measuring.warnings import MeasurementWarning
from flashmore.memory import free_bytes
from flashmore.training.resolve import resolve_attention
from flashmore.training.trainer import Trainer

BLOCKS = 30
BLOCK_SECONDS = 0.2
WARMUP = 5
DEFAULT: tuple[str, ...] = ("manual", "flash")
INSTEAD_OF_FLASH: tuple[str, ...] = ("efficient", "cudnn", "sdpa")
ATTENTION_ALONE = "attention alone"
INTERRUPTED = "interrupted before it was timed"
SHORT = 256
MIB = 2**20


@dataclass
class StepVariant:
    """One backend's steps: its numbers, or why it has none."""

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


@dataclass(frozen=True)
class StepComparison:
    """Step times of several variants at one context."""

    context: int
    batch: int
    variants: tuple[StepVariant, ...]
    ratios: tuple[RatioBetween, ...] = ()
    """Each later timed variant against the first."""
    attention_samples_ms: tuple[tuple[float, ...], ...] = ()
    """Blocks of attention alone, forward and backward in all layers, with the first variant's backend."""
    attention_share: Ratio | None = None
    """Time of attention alone over the time of the first variant's step."""
    notes: tuple[str, ...] = ()
    warnings: tuple[MeasurementWarning, ...] = ()
    complete: bool = True

    @property
    def most_gain(self) -> float | None:
        """Upper bound of the speed-up if attention took no time (Amdahl's law)."""
        if self.attention_share is None or self.attention_share.value >= 1:
            return None
        return 1 / (1 - self.attention_share.value)


def compare_steps(
    config: TrainConfig,
    variants: Sequence[str] | None = None,
    *,
    context: int | None = None,
    shrink_batch: bool = True,
    blocks: int = BLOCKS,
    say: Callable[[str], None] = lambda _: None,
    after_block: Callable[[int], None] = lambda _: None,
) -> StepComparison:
    """Time training steps of the config's Transformer under each backend, in alternating blocks.

    Args:
        config: data, model and training parameters, the same for all; its `attention` is ignored.
        variants: backends; the first is the baseline. A name may be repeated. None means `manual` and
            `flash`, or another fused backend if flash cannot run. `auto` is resolved first and listed under
            the name that it chose.
        context: T, as in `flashmore.benchmark.step.data.task_at`; None means the data's own.
        shrink_batch: use fewer rows at longer contexts.
        blocks: blocks per variant.
        say: called with a description of each preparation step.
        after_block: called with the number of completed rounds.

    Returns:
        Every variant with its numbers or the reason why it has none. After Ctrl-C, the completed rounds, and
        not `complete`.

    Raises:
        DataError, ConfigError: see `task_at`.
    """
    if blocks < 1:
        raise ConfigError("a sensible --blocks", f"{blocks}", "20 or more")
    bench = _Bench(task_at(config, context, shrink_batch=shrink_batch), say)
    try:
        bench.prepare(variants)
        bench.time(blocks, after_block)
    except KeyboardInterrupt:
        bench.complete = False
    return bench.result()


class _Bench:
    """A comparison in progress."""

    def __init__(self, task: Task, say: Callable[[str], None]) -> None:
        if task.config.threads_here:
            torch.set_num_threads(task.config.threads_here)
        self.task, self.say = task, say
        self.gate = Gate(task)
        self.notes = list(task.notes)
        self.variants: list[StepVariant] = []
        self.steps: dict[str, Callable[[], object]] = {}
        """By each variant's key, because a name may be repeated."""
        self.samples: dict[str, list[list[float]]] = {}
        self.warnings: tuple[MeasurementWarning, ...] = ()
        self.complete = True

    def prepare(self, names: Sequence[str] | None) -> None:
        """Refuse or check every variant, and measure its memory."""
        self.variants = [StepVariant(self._settled(name)) for name in names or self._default()]
        for number, variant in enumerate(self.variants):
            self.say(f"checking {variant.name} at context {self.task.model_config.block_size:,}")
            twin = next((v for v in self.variants[:number] if v.name == variant.name), None)
            try:
                if twin is not None:
                    variant.why_not, variant.budget_used = twin.why_not, twin.budget_used
                else:
                    variant.why_not = self._refusal(variant.name) or self._misses_budget(variant)
                if variant.ok:
                    self.steps[self._key(number)] = self._ready_step(variant)
            except (RuntimeError, MemoryError) as error:  # torch: out of memory, on a GPU and on a CPU
                variant.why_not = f"torch says: {str(error).partition(chr(10))[0]}"
        if self.gate.note and any(variant.budget_used is not None for variant in self.variants):
            self.notes.append(self.gate.note)

    def time(self, blocks: int, after_block: Callable[[int], None]) -> None:
        """Time the remaining variants and attention alone in alternating blocks."""
        first = next((variant for variant in self.variants if variant.ok), None)
        if first is None:
            return
        runs = self.steps | {ATTENTION_ALONE: attention_alone(first.name, self.task)}
        self.say("timing in turn")
        timing = time_in_turn(
            runs,
            blocks=blocks,
            block_seconds=BLOCK_SECONDS,
            threads=torch.get_num_threads() if self.task.device.type == "cpu" else 1,
            after_block=after_block,
        )
        self.samples, self.warnings, self.complete = timing.samples_ms, timing.warnings, timing.complete

    def result(self) -> StepComparison:
        """The results so far."""
        task = self.task
        for number, variant in enumerate(self.variants):
            variant.samples_ms = self.samples.get(self._key(number), [])
            if variant.samples_ms:
                variant.step_ms = spread(variant.samples_ms)
            elif variant.ok:
                variant.why_not = INTERRUPTED
        timed = [variant for variant in self.variants if variant.ok]
        alone = self.samples.get(ATTENTION_ALONE, [])
        return StepComparison(
            context=task.model_config.block_size,
            batch=task.config.batch_size,
            variants=tuple(self.variants),
            ratios=tuple(
                RatioBetween(timed[0].name, other.name, ratio(timed[0].samples_ms, other.samples_ms))
                for other in timed[1:]
            ),
            attention_samples_ms=tuple(map(tuple, alone)),
            attention_share=ratio(alone, timed[0].samples_ms) if timed else None,
            notes=tuple(self.notes),
            warnings=self.warnings,
            complete=self.complete,
        )

    def _key(self, number: int) -> str:
        """A variant's name, numbered from its second time on."""
        name = self.variants[number].name
        times = sum(variant.name == name for variant in self.variants[: number + 1])
        return name if times == 1 else f"{name} ({times})"

    def _default(self) -> tuple[str, ...]:
        """Manual and fused: flash, or else the first fused backend that runs here."""
        try:
            self._try("flash")
        except BackendUnavailable as error:
            for name in INSTEAD_OF_FLASH:
                try:
                    self._try(name)
                except BackendUnavailable:
                    continue
                note = f"{name} in place of flash, which cannot run here: {'; '.join(error.reasons)}"
                self.notes.append(note)
                return (DEFAULT[0], name)
        return DEFAULT

    def _settled(self, name: str) -> str:
        """The backend for a name: resolves and reports `auto`, outside the timing."""
        if name != "auto":
            return name
        choice = resolve_attention(name, self.task.config, self.task.model_config, self.task.device)
        if choice is None:
            raise ConfigError("a model with attention", "another model", "--model transformer")
        self.notes.append(f"auto is {choice.backend}: {choice.why}")
        self.say(self.notes[-1])
        return choice.backend

    def _try(self, name: str) -> None:
        task = self.task
        # One short row is enough to know, and takes no memory that was not estimated.
        model_config = replace(task.model_config, block_size=min(task.model_config.block_size, SHORT))
        resolve_attention(name, replace(task.config, batch_size=1), model_config, task.device)

    def _refusal(self, name: str) -> str | None:
        """Why a backend cannot be tried: its memory, or because it does not run here."""
        task = self.task
        free = SHARE_OF_FREE * free_bytes(task.device)
        needed = weights_bytes(task.model_config) + activation_bytes(
            name, task.model_config, task.config, device=task.device.type, threads=torch.get_num_threads()
        )
        if needed > free:
            return f"it would take about {needed / MIB:,.0f} MiB, and {free / MIB:,.0f} MiB may be used"
        try:
            resolve_attention(name, task.config, task.model_config, task.device)
        except BackendUnavailable as error:
            return "; ".join(error.reasons)
        return None

    def _misses_budget(self, variant: StepVariant) -> str | None:
        """Check a backend's results; returns why it is not timed, or None."""
        judgements = self.gate.judgements(variant.name)
        used = {j.name: j.error / j.budget if j.budget else float(j.error > 0) for j in judgements}
        bad = [judgement for judgement in judgements if not judgement.good]
        if not bad:
            variant.budget_used = max(used.values())
            return None
        worst = max(bad, key=lambda judgement: used[judgement.name])
        found = f"the error of {worst.name} is {worst.error:.2g}, and its budget {worst.budget:.2g}"
        return f"not as right as its precision allows: {found} ({len(bad)} of {len(used)} checks failed)"

    def _ready_step(self, variant: StepVariant) -> Callable[[], object]:
        """Make one training step a synchronised call, warm it up, and measure its memory."""
        task = self.task
        trainer = Trainer(
            task.config, replace(task.model_config, attention=variant.name), task.dataset(), task.device
        )

        def step() -> float:
            return trainer.train_step().item()

        for _ in range(WARMUP):
            step()
        trainer.model.zero_grad(set_to_none=True)  # so that gradients count towards the step's memory
        variant.peak_bytes = peak_bytes(step, task.device)
        return step
