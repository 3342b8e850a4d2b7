"""Benchmarks the attention kernels alone: time, memory and error against T.

B and H are the same at every T, so a curve shows how one model's attention scales with its context, and the
overhead at small T.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from flashmore.backends.contract import attention_accuracy
from flashmore.benchmark.attention.passes import EventStopwatch, Inputs, Passes, Stopwatch
from flashmore.benchmark.attention.plan import (
    SHARE_OF_FREE,
    AttentionPlan,
    attention_flops,
    check_bytes,
    described,
    inputs_bytes,
    peak_estimate,
    setting_of,
)
from flashmore.benchmark.variant import INTERRUPTED, torch_says
from flashmore.call import CallOptions, Pass
from flashmore.config import usable_threads
from flashmore.errors import BackendUnavailable
from flashmore.measuring.environment import on_battery
from flashmore.measuring.measure import Clock, alternate
from flashmore.measuring.result import make_record
from flashmore.measuring.statistics import EQUIVALENCE, Ratio, ratio, spread
from flashmore.measuring.warnings import MeasurementWarning, load_meter, warnings_about
from flashmore.memory import free_bytes
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
JUDGED: dict[Pass, tuple[str, ...]] = {
    "forward": ("out",),
    "backward": ("dq", "dk", "dv"),
    "both": ("out", "dq", "dk", "dv"),
}
ROWS: dict[Pass, tuple[Pass, ...]] = {
    "forward": ("forward",),
    "backward": ("backward",),
    "both": ("forward", "backward", "both"),
}
"""The passes that a record has rows for, by what was asked for; the last one is compared."""
MORE_TIME = "give it more time (--seconds) or fewer lengths, and do not interrupt it"


def bench_attention(
    plan: AttentionPlan,
    *,
    equivalence: float = EQUIVALENCE,
    clock: Clock = time.perf_counter,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run the plan's measurements; on CUDA the blocks are timed with events, not with the clock.

    Args:
        equivalence: differences up to this many percent count as none.
        clock: for the time budget, and for timing.
        say: called with each shape.

    Returns:
        A record of kind `attention`. After Ctrl-C it has the results so far and is not `complete`.

    Raises:
        ConfigError: the device is not on this machine.
    """
    device, complete = resolve_device(plan.device), True
    if plan.threads:
        torch.set_num_threads(usable_threads(plan.threads))
    bench = _Bench(plan, device, equivalence, clock, say)
    try:
        for shape in bench.shapes:
            bench.measure(shape)
    except KeyboardInterrupt:
        complete = False
    return make_record("attention", device, bench.body(), complete=complete)


class TimeBudget:
    """Time for a list of shapes: each gets a share, and unused time goes to later ones."""

    def __init__(self, seconds: float, shapes: Iterable[CallOptions], clock: Clock) -> None:
        self.clock = clock
        self.end = clock() + seconds
        # Work grows with T², but short shapes need repetitions: a compromise between equal and T² shares.
        self._ahead = [
            math.sqrt(shape.length * shape.keys * shape.pairs * shape.head_dim) for shape in shapes
        ]

    def left(self) -> float:
        """Remaining seconds of the budget; negative if exceeded."""
        return self.end - self.clock()

    def next_share(self) -> float:
        """Seconds for the next shape of the list."""
        share = self.left() * self._ahead[0] / sum(self._ahead)
        del self._ahead[0]
        return max(0.0, share)


class _Bench:
    """A measurement in progress."""

    def __init__(
        self,
        plan: AttentionPlan,
        device: torch.device,
        equivalence: float,
        clock: Clock,
        say: Callable[[str], None],
    ) -> None:
        self.plan, self.device, self.equivalence, self.clock, self.say = plan, device, equivalence, clock, say
        self.shapes = plan.calls(device.type)
        self.memory = SHARE_OF_FREE * free_bytes(device) if plan.memory is None else plan.memory * GIB
        self.budget = TimeBudget(plan.seconds, self.shapes, clock)
        self.wall = Stopwatch(device, clock)
        self.stopwatch = EventStopwatch(device) if device.type == "cuda" else self.wall
        self.rows: list[dict[str, Any]] = []
        self.ratios: list[dict[str, Any]] = []
        self.doubts: dict[str, dict[int, MeasurementWarning]] = {}
        """By code and length; the last one if several settings have the same length."""
        self.wins: dict[CallOptions, dict[int, Ratio]] = {setting_of(shape): {} for shape in self.shapes}
        self.pace: dict[tuple[str, CallOptions], tuple[int, float]] = {}
        """By backend and setting: the size of an (L, S) matrix, and the seconds of one sample there."""
        self.check_seconds: dict[CallOptions, tuple[int, float]] = {}
        """By setting: a number of scores compared with float64, and the seconds it took."""

    def body(self) -> dict[str, Any]:
        """The results so far, as in a record."""
        found = [(setting, crossover(ratios)) for setting, ratios in self.wins.items()]
        return {
            "rows": self.rows,
            "ratios": self.ratios,
            "crossovers": [described(setting) | {"T": T} for setting, T in found],
            "crossover_T": found[0][1],
            "memory_budget_bytes": int(self.memory),
            "time_budget_s": self.plan.seconds,
            "warnings": [_warning_over(doubts) for doubts in self.doubts.values()],
        }

    def measure(self, shape: CallOptions) -> None:
        """Run all measurements for one shape."""
        sizes = f"B {shape.batch_size}, H {shape.n_head}, D {shape.head_dim}, {shape.dtype}"
        self.say(f"T {shape.keys:,} ({sizes})")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # fragments from shorter lengths
        until = self.clock() + self.budget.next_share()
        checked = self._checked_pairs(shape)
        why_not = {backend: self._refusal(backend, shape, checked) for backend in self.plan.backends}
        self._leave_out_what_takes_long(shape, why_not, checked)
        every: dict[str, Passes] = {}
        if remaining := _remaining(why_not):
            inputs = Inputs.random(shape, self.device)
            for backend in remaining:
                every[backend] = Passes(backend, shape, inputs, self.stopwatch)
                why_not[backend] = self._prepare(every[backend], shape, checked)
        ready = {backend: every[backend] for backend in _remaining(why_not)}
        try:
            self._time(ready, shape, until)
        except (RuntimeError, MemoryError) as error:
            why_not |= dict.fromkeys(ready, torch_says(error))
            ready = {}
        finally:  # after Ctrl-C completed rounds are kept
            for backend, why in why_not.items():
                self.rows += _rows_of(backend, why, every.get(backend), shape, checked)
            self._compare(ready, shape)

    def _checked_pairs(self, shape: CallOptions) -> int:
        """How many (L, S) matrices are compared with float64: as many as time and memory allow.

        Whole groups of heads that share k and v, and, above one batch item, whole items.
        """
        group = shape.n_head // shape.kv_heads
        pairs = min(shape.pairs, max(1, CHECKED_SCORES // (shape.length * shape.keys)))
        while pairs > group and check_bytes(shape, pairs) > self.memory:
            pairs -= 1
        whole = group if pairs <= shape.n_head else shape.n_head
        return max(group, pairs // whole * whole)

    def _refusal(self, backend: str, shape: CallOptions, checked: int) -> str | None:
        device = self.device.type
        capability = torch.cuda.get_device_capability(self.device) if device == "cuda" else (8, 0)
        call = replace(shape.call(device), capability=capability)
        if reasons := backend_spec(backend).reasons_against(call):
            return "; ".join(map(str, reasons))
        own = peak_estimate(backend, shape, device=device, threads=torch.get_num_threads())
        check = check_bytes(shape, checked)
        needed = inputs_bytes(shape) + max(own, check)
        if needed > self.memory:
            what = "it" if own >= check else "the check against float64"
            return f"{what} would need {needed / GIB:.2g} GiB, and the limit is {self.memory / GIB:.2g} GiB"
        return None

    def _leave_out_what_takes_long(
        self, shape: CallOptions, why_not: dict[str, str | None], checked: int
    ) -> None:
        """Leave out backends until the rest fits in time: math, which no ratio needs, then the slowest."""
        seconds = {backend: self._seconds(backend, shape, checked) for backend in _remaining(why_not)}
        for backend in sorted(seconds, key=lambda name: (name != "math", -seconds[name])):
            left = max(0.0, self.budget.left())
            if sum(seconds.values()) > left:
                of = f"{left:,.1f} s of {self.plan.seconds:g} s are left for all"
                why_not[backend] = f"it would take about {seconds.pop(backend):,.1f} s, and {of}"

    def _seconds(self, backend: str, shape: CallOptions, checked: int) -> float:
        """Lower bound of the time to measure one backend, from shorter lengths: work grows with L · S."""
        key, matrix = (backend, setting_of(shape)), shape.length * shape.keys
        if key not in self.pace:
            self.pace[key] = self._probe(backend, shape)
        before, call = self.pace[key]
        scores, check = self.check_seconds.get(setting_of(shape), (1, 0.0))
        growth = max(1.0, checked * matrix / scores)
        return call * max(1.0, matrix / before) * (MIN_BLOCKS + OTHER_CALLS) + check * growth

    def _probe(self, backend: str, shape: CallOptions) -> tuple[int, float]:
        source = None if shape.source_length is None else min(shape.keys, PROBED_T)
        small = replace(shape, length=min(shape.length, PROBED_T), source_length=source)
        passes = Passes(backend, small, Inputs.random(small, self.device), self.wall)
        matrix = small.length * small.keys
        try:
            return matrix, min(passes.first_call_ms(self.wall)["both"] for _ in range(PROBES)) / 1000
        except (BackendUnavailable, RuntimeError, MemoryError):
            return matrix, 0.0  # the shape itself will tell why

    def _prepare(self, passes: Passes, shape: CallOptions, checked: int) -> str | None:
        """Everything before timing: the first call, the check, the memory; returns why it is not timed."""
        heads = shape.n_head
        part = (checked // heads, heads) if checked >= heads else (1, checked)  # batch items and heads
        q, k, v, mask, _ = passes.inputs
        try:
            passes.cold_ms = passes.first_call_ms(self.wall)
            began = self.clock()
            passes.judgements = attention_accuracy(
                passes.backend, q, k, v, causal=shape.is_causal, mask=mask, part=part, gradients=passes.trains
            )
            scores = checked * shape.length * shape.keys
            self.check_seconds[setting_of(shape)] = scores, self.clock() - began
            bad = [judgement.name for judgement in passes.judgements if not judgement.good]
            if bad:
                return f"its error is too large for its precision: {', '.join(bad)}"
            passes.peaks = passes.peak_bytes()
        except BackendUnavailable as error:
            return "; ".join(error.reasons)
        except (RuntimeError, MemoryError) as error:
            return torch_says(error)
        return None

    def _time(self, every: Mapping[str, Passes], shape: CallOptions, until: float) -> None:
        """Alternating blocks until the shape's share of the time is used, at least `MIN_BLOCKS`."""
        if not every:
            return
        until = max(until, self.clock() + LEAST_SHARE * self.plan.seconds)
        round_seconds = sum(self._warm_up(passes) for passes in every.values())
        fitting = (until - self.clock()) / max(round_seconds, 1e-9)
        repeats = int(min(MAX_REPEATS, max(1, fitting // BLOCKS)))

        def close(_: int) -> None:
            for passes in every.values():
                passes.close_block()

        began, others, done, more = self.clock(), load_meter(), 0, MIN_BLOCKS
        while more:
            alternate(every, blocks=more, repeats=repeats, warmup=0, clock=self.clock, after_block=close)
            done += more
            # Two at a time: every backend runs as often before the others as after them.
            round_seconds = (self.clock() - began) / done
            more = 2 if done < BLOCKS and self.clock() + 2 * round_seconds < until else 0
        compared = {backend: passes.samples_ms(shape.passes) for backend, passes in every.items()}
        threads = torch.get_num_threads()
        for doubt in warnings_about(compared, others=others(), threads=threads, battery=on_battery()):
            self.doubts.setdefault(doubt["code"], {})[shape.keys] = doubt
        for backend, passes in every.items():
            whole = spread(passes.samples_ms("both")).median / 1000
            self.pace[backend, setting_of(shape)] = shape.length * shape.keys, whole

    def _warm_up(self, passes: Passes) -> float:
        """Seconds of the fastest of a few calls, or of a single long one; they are not recorded."""
        fastest = self.wall.time(passes)[0]
        if fastest < LONG_MS:
            fastest = min(self.wall.time(passes)[0] for _ in range(PROBES))
        passes.forget()
        return fastest / 1000

    def _compare(self, every: Mapping[str, Passes], shape: CallOptions) -> None:
        both = {
            backend: passes.samples_ms(shape.passes) for backend, passes in every.items() if passes.blocks
        }
        fused = [backend for backend in both if backend_spec(backend).fused]
        if "manual" not in both or not fused:
            return
        ratios = {backend: ratio(both["manual"], both[backend], self.equivalence) for backend in fused}
        for backend, found in ratios.items():
            told = found.to_json("manual", backend) | {"pairs": found.pairs}
            self.ratios.append(described(shape) | told)
        best = min(fused, key=lambda backend: spread(both[backend]).median)
        self.wins[setting_of(shape)][shape.keys] = ratios[best]


def _remaining(why_not: Mapping[str, str | None]) -> list[str]:
    return [backend for backend, why in why_not.items() if why is None]


def crossover(ratios: Mapping[int, Ratio]) -> int | None:
    """The length from which on fused attention is faster, at every length measured; None if there is none.

    Args:
        ratios: by length: time of `manual` over time of the best fused backend, forward and backward.
    """
    found = None
    for T in sorted(ratios, reverse=True):
        if ratios[T].verdict != "faster":
            break
        found = T
    return found


def _warning_over(doubts: Mapping[int, MeasurementWarning]) -> MeasurementWarning:
    """One warning for all affected lengths, with the message of the longest."""
    longest = doubts[max(doubts)]
    lengths = ", ".join(f"{T:,}" for T in sorted(doubts))
    advice = MORE_TIME if longest["code"] == "too few samples" else longest["advice"]
    return {"code": longest["code"], "message": f"at T = {lengths}: {longest['message']}", "advice": advice}


def _rows_of(
    backend: str, why_not: str | None, passes: Passes | None, shape: CallOptions, checked: int
) -> Iterable[dict[str, Any]]:
    """One row per pass, as in a record."""
    for which in ROWS[shape.passes]:
        names = JUDGED[which]
        judged = [judgement for judgement in passes.judgements if judgement.name in names] if passes else []
        samples = passes.samples_ms(which) if passes and why_not is None else []
        worst = max(judged, key=lambda judgement: judgement.budget_used, default=None)
        time_ms = spread(samples) if samples else None
        sizes = shape.batch_size, shape.n_head, shape.length, shape.keys, shape.head_dim
        flops = attention_flops(*sizes, causal=shape.is_causal, which=which, D_v=shape.values)
        yield {
            "backend": backend,
            **described(shape),
            "pass": which,
            "ok": bool(samples),
            "why_not": why_not or (None if samples else INTERRUPTED),
            "time_ms": time_ms and asdict(time_ms),
            "cold_ms": passes.cold_ms.get(which) if passes and time_ms else None,
            "samples_ms": samples,
            "tflop_per_s": flops / time_ms.median / 1e9 if time_ms else None,
            "peak_bytes": passes.peaks.get(which) if passes and time_ms else None,
            "error": worst.error if worst and worst.error < float("inf") else None,
            "error_budget": worst.budget if worst else None,
            "checked_pairs": checked if worst else None,
        }
