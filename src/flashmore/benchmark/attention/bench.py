"""Benchmarks the attention kernels alone: time, memory and error against T.

For each shape, backends that would exceed the memory or time budget are left out and named; the first call is
timed separately; output and gradients are compared with float64, and a backend that fails is not timed; peak
memory is measured in untimed passes; then all backends are timed in alternating blocks. B and H are the same
at every T, so a curve shows how one model's attention scales with its context, and the overhead at small T.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from flashmore.backends.contract import attention_accuracy
from flashmore.benchmark.attention.budget import SHARE_OF_FREE, TimeBudget
from flashmore.benchmark.attention.flops import (
    check_bytes,
    inputs_bytes,
    peak_estimate,
)
from flashmore.benchmark.attention.passes import EventStopwatch, Inputs, Passes, Stopwatch, WallStopwatch
from flashmore.benchmark.attention.plan import AttentionPlan, Shape
from flashmore.benchmark.attention.rows import Outcome, crossover, rows_of, sizes, warning_over
from flashmore.errors import BackendUnavailable
from flashmore.measuring.environment import others_cpu_seconds
from flashmore.measuring.measure import Clock, alternate
from flashmore.measuring.result import make_record
from flashmore.measuring.statistics import Ratio, ratio, spread
from flashmore.measuring.warnings import MeasurementWarning, warnings_about
from flashmore.memory import free_bytes
from flashmore.rules import AttentionCall
from flashmore.specs import backend_spec
from flashmore.training.resolve import resolve_device

BLOCKS = 30
MIN_BLOCKS = 8
"""Even, and enough for a verdict (`measuring.statistics.FEWEST_PAIRS`)."""
LEAST_SHARE = 0.01
"""Minimum share of the time for the blocks of a shape: more than short ones need for 30 blocks of 10."""
MAX_REPEATS = 10
OTHER_CALLS = 6
"""Calls besides the blocks: the first call, the check, two for memory, one warm-up, and one in reserve."""
CHECKED_SCORES = 2**24
"""Scores compared with float64 at each shape: all, up to one head at T = 4096."""
PROBED_T = 256
"""If all lengths are above this, a run of this length estimates a backend's speed."""
PROBES = 3
LONG_MS = 100.0
GIB = 2**30


def bench_attention(
    plan: AttentionPlan,
    *,
    clock: Clock = time.perf_counter,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run the plan's measurements.

    Args:
        plan: sizes, backends, device, budgets.
        clock: the clock; on CUDA the blocks are timed with events.
        say: called with a description of the current measurement.

    Returns:
        A record of kind `attention`. After Ctrl-C it has the results so far and is not `complete`.

    Raises:
        ConfigError: the device is not on this machine.
    """
    device = resolve_device(plan.device)
    bench = _Bench(plan, device, clock, say)
    try:
        for shape in bench.shapes:
            bench.measure(shape)
    except KeyboardInterrupt:
        return make_record("attention", device, bench.body(), complete=False)
    return make_record("attention", device, bench.body())


class _Bench:
    """A measurement in progress."""

    def __init__(
        self, plan: AttentionPlan, device: torch.device, clock: Clock, say: Callable[[str], None]
    ) -> None:
        self.plan, self.device, self.clock, self.say = plan, device, clock, say
        self.shapes = plan.shapes(device.type)
        self.memory = SHARE_OF_FREE * free_bytes(device) if plan.memory is None else plan.memory * GIB
        self.budget = TimeBudget(plan.seconds, self.shapes, clock)
        self.wall = WallStopwatch(device, clock)
        self.stopwatch: Stopwatch = EventStopwatch(device) if device.type == "cuda" else self.wall
        self.rows: list[dict[str, Any]] = []
        self.ratios: list[dict[str, Any]] = []
        self.doubts: dict[str, dict[int, MeasurementWarning]] = {}
        """By code and length; the last one if several settings have the same length."""
        self.wins: dict[Shape, dict[int, Ratio]] = {shape.setting: {} for shape in self.shapes}
        self.pace: dict[tuple[str, Shape], tuple[int, float]] = {}
        """By backend and setting: a length, and the seconds of one forward and backward there."""
        self.check_seconds: dict[Shape, tuple[int, float]] = {}
        """By setting: a number of scores compared with float64, and the seconds it took."""

    def body(self) -> dict[str, Any]:
        """The results so far, as described by the record's schema."""
        found = [(setting, crossover(ratios)) for setting, ratios in self.wins.items()]
        return {
            "rows": self.rows,
            "ratios": self.ratios,
            "crossovers": [sizes(setting) | {"T": T} for setting, T in found],
            "crossover_T": found[0][1],
            "memory_budget_bytes": int(self.memory),
            "time_budget_s": self.plan.seconds,
            "warnings": [warning_over(doubts) for doubts in self.doubts.values()],
        }

    def measure(self, shape: Shape) -> None:
        """Run all measurements for one shape."""
        self.say(f"T {shape.T:,} (B {shape.B}, H {shape.H}, D {shape.D}, {shape.dtype})")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # fragments from shorter lengths
        until = self.clock() + self.budget.next_share()
        checked = self._checked_pairs(shape)
        outcomes = [
            Outcome(backend, self._refusal(backend, shape, checked)) for backend in self.plan.backends
        ]
        self._leave_out_what_takes_long(shape, outcomes, checked)
        if any(outcome.why_not is None for outcome in outcomes):
            inputs = Inputs.random(shape, self.device)
            for outcome in outcomes:
                if outcome.why_not is None:
                    self._prepare(outcome, shape, inputs, checked)
        ready = [outcome for outcome in outcomes if outcome.why_not is None]
        try:
            self._time(ready, shape, until)
        except (RuntimeError, MemoryError) as error:
            for outcome in ready:
                outcome.why_not = _torch_says(error)
        finally:  # after Ctrl-C completed rounds are kept
            for outcome in outcomes:
                self.rows += rows_of(outcome, shape, checked)
            self._compare(outcomes, shape)

    def _checked_pairs(self, shape: Shape) -> int:
        """How many (T, T) matrices are compared with float64: as many as time and memory allow."""
        pairs = min(shape.pairs, max(1, CHECKED_SCORES // shape.T**2))
        while pairs > 1 and check_bytes(shape, pairs) > self.memory:
            pairs -= 1
        if pairs > shape.H:
            return pairs // shape.H * shape.H
        return pairs

    def _refusal(self, backend: str, shape: Shape, checked: int) -> str | None:
        size = (shape.B, shape.H, shape.T, shape.D)
        on_cuda = self.device.type == "cuda"
        call = AttentionCall(
            query=size, key=size, value=size, dtype=shape.dtype, device=self.device.type, causal=shape.causal,
            capability=torch.cuda.get_device_capability(self.device) if on_cuda else (8, 0),
        )  # fmt: skip
        reasons = backend_spec(backend).reasons_against(call)
        if reasons:
            return "; ".join(map(str, reasons))
        own = peak_estimate(backend, shape, device=self.device.type, threads=torch.get_num_threads())
        check = check_bytes(shape, checked)
        needed = inputs_bytes(shape) + max(own, check)
        if needed > self.memory:
            what = "it" if own >= check else "the check against float64"
            return f"{what} would take {needed / GIB:.2g} GiB, and {self.memory / GIB:.2g} GiB may be used"
        return None

    def _leave_out_what_takes_long(self, shape: Shape, outcomes: list[Outcome], checked: int) -> None:
        """Leave out backends until the rest fits in time: math, which no ratio needs, then the slowest."""
        seconds = {o.backend: self._seconds(o.backend, shape, checked) for o in outcomes if o.why_not is None}
        candidates = [outcome for outcome in outcomes if outcome.why_not is None]
        for outcome in sorted(candidates, key=lambda o: (o.backend != "math", -seconds[o.backend])):
            left = max(0.0, self.budget.left())
            if sum(seconds.values()) > left:
                needed = seconds.pop(outcome.backend)
                of = f"{left:,.1f} s of {self.plan.seconds:g} s are left for all"
                outcome.why_not = f"it would take about {needed:,.1f} s, and {of}"

    def _seconds(self, backend: str, shape: Shape, checked: int) -> float:
        """Lower bound of the time to measure one backend, from shorter lengths: work grows with T²."""
        if (backend, shape.setting) not in self.pace:
            self._probe(backend, shape)
        T, call = self.pace[backend, shape.setting]
        scores, check = self.check_seconds.get(shape.setting, (1, 0.0))
        growth = max(1.0, checked * shape.T**2 / scores)
        return call * max(1.0, (shape.T / T) ** 2) * (MIN_BLOCKS + OTHER_CALLS) + check * growth

    def _probe(self, backend: str, shape: Shape) -> None:
        small = replace(shape, T=min(shape.T, PROBED_T))
        passes = Passes(backend, shape.causal, Inputs.random(small, self.device), self.wall)
        try:
            seconds = min(passes.cold_ms(self.wall)["both"] for _ in range(PROBES)) / 1000
        except (BackendUnavailable, RuntimeError, MemoryError):
            seconds = 0.0  # the shape itself will tell why
        self.pace[backend, shape.setting] = small.T, seconds

    def _prepare(self, outcome: Outcome, shape: Shape, inputs: Inputs, checked: int) -> None:
        """Everything before timing: the first call, the check, the memory."""
        passes = Passes(outcome.backend, shape.causal, inputs, self.stopwatch)
        try:
            outcome.cold_ms = passes.cold_ms(self.wall)
            began = self.clock()
            outcome.judgements = attention_accuracy(
                outcome.backend, inputs.q, inputs.k, inputs.v, causal=shape.causal, part=_part(shape, checked)
            )
            self.check_seconds[shape.setting] = checked * shape.T**2, self.clock() - began
            bad = [judgement.name for judgement in outcome.judgements if not judgement.good]
            if bad:
                outcome.why_not = f"not as good as its precision allows: {', '.join(bad)}"
                return
            outcome.peaks = passes.peak_bytes()
        except BackendUnavailable as error:
            outcome.why_not = "; ".join(error.reasons)
        except (RuntimeError, MemoryError) as error:
            outcome.why_not = _torch_says(error)
        else:
            outcome.passes = passes

    def _time(self, ready: list[Outcome], shape: Shape, until: float) -> None:
        """Alternating blocks until the shape's share of the time is used, at least `MIN_BLOCKS`."""
        every = {outcome.backend: outcome.passes for outcome in ready if outcome.passes is not None}
        if not every:
            return
        until = max(until, self.clock() + LEAST_SHARE * self.plan.seconds)
        round_seconds = sum(self._warm_up(passes) for passes in every.values())
        fitting = (until - self.clock()) / max(round_seconds, 1e-9)
        repeats = int(min(MAX_REPEATS, max(1, fitting // BLOCKS)))

        def close(_: int) -> None:
            for passes in every.values():
                passes.close_block()

        began, others, done, more = self.clock(), others_cpu_seconds(), 0, MIN_BLOCKS
        while more:
            alternate(every, blocks=more, repeats=repeats, warmup=0, clock=self.clock, after_block=close)
            done += more
            # Two at a time: every backend runs as often before the others as after them.
            round_seconds = (self.clock() - began) / done
            more = 2 if done < BLOCKS and self.clock() + 2 * round_seconds < until else 0
        self._note_doubts(every, shape.T, self.clock() - began, others)
        for backend, passes in every.items():
            median_ms = spread(passes.samples_ms("both")).median
            self.pace[backend, shape.setting] = shape.T, median_ms / 1000

    def _warm_up(self, passes: Passes) -> float:
        """Seconds of the fastest of a few calls, or of a single long one; they are not recorded."""
        fastest = self.wall.time(passes)[0]
        if fastest < LONG_MS:
            fastest = min(self.wall.time(passes)[0] for _ in range(PROBES))
        passes.forget()
        return fastest / 1000

    def _note_doubts(
        self, every: Mapping[str, Passes], T: int, seconds: float, others_before: float | None
    ) -> None:
        after = others_cpu_seconds()
        busy = None if others_before is None or after is None else (after - others_before) / seconds
        for doubt in warnings_about(
            {backend: passes.samples_ms("both") for backend, passes in every.items()},
            others=busy,
            cpus=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
        ):
            self.doubts.setdefault(doubt.code, {})[T] = doubt

    def _compare(self, outcomes: list[Outcome], shape: Shape) -> None:
        timed = [(o.backend, o.passes) for o in outcomes if o.why_not is None and o.passes]
        both = {backend: passes.samples_ms("both") for backend, passes in timed if passes.blocks}
        fused = [backend for backend in both if backend_spec(backend).fused]
        if "manual" not in both or not fused:
            return
        ratios = {backend: ratio(both["manual"], both[backend]) for backend in fused}
        for backend, found in ratios.items():
            verdict = {"of": "manual", "to": backend, "verdict": found.verdict}
            self.ratios.append(sizes(shape) | {"T": shape.T} | verdict | asdict(found))
        best = min(fused, key=lambda backend: spread(both[backend]).median)
        self.wins[shape.setting][shape.T] = ratios[best]


def _torch_says(error: Exception) -> str:
    """The message of a torch error, usually out of memory, which has no specific exception on the CPU."""
    return "torch says: " + str(error).partition("\n")[0]


def _part(shape: Shape, checked: int) -> tuple[int, int]:
    """A number of matrices as batch items and heads."""
    return (checked // shape.H, shape.H) if checked >= shape.H else (1, checked)
