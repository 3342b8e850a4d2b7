"""The measured choice: which backend is fastest here, for this device, dtype and shape.

Correctness first: a backend whose output or gradients exceed the error budget is not timed. The others run
forward and backward in alternating blocks, and the one with the lowest first quartile is cached on disk: the
answer depends on the machine and the torch release, not on the day. The first quartile is robust against
other programs, which only add time: they can make the median 30 times too high (docs/log.md).
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from flashmore.backends.contract import Compute, attention, attention_accuracy, load_backend
from flashmore.errors import BackendUnavailable, FlashmoreError, StorageError, is_out_of_memory
from flashmore.files import cache_folder, read_regular, replace_file
from flashmore.measuring.environment import cpu_name
from flashmore.measuring.measure import Clock, alternate
from flashmore.measuring.statistics import Spread, spread
from flashmore.specs import backends

BLOCKS, FEWEST_BLOCKS = 15, 5
ALL_SECONDS = 2.0  # so that `auto` does not delay training for long
BLOCK_SECONDS = 0.01
MOST_REPEATS = 50
BATCH_BYTES, MATRIX_BYTES = 2**28, 2**30
"""Limits for the four (T, T) matrices of a manual pass: above the first, fewer sequences are measured; above
the second, shorter ones."""
CACHE_VERSION = 3
LARGEST_ANSWER = 2**20  # bytes of a cache file; ours have about 2,000


@dataclass(frozen=True)
class Problem:
    """Causal self-attention of one shape on one device, for which a backend is chosen."""

    shape: tuple[int, int, int, int]
    """(B, H, T, D)."""
    dtype: torch.dtype
    """Dtype of q, k and v; under autocast, the 16-bit type."""
    device: torch.device
    dropout_p: float = 0.0
    """Dropout probability on the weights, in training."""
    compiled: bool = False
    """Inside a torch.compile graph, which fuses manual attention, so another backend may win."""

    @property
    def measurable(self) -> "Problem":
        """The same with fewer, then shorter sequences, until a manual pass is affordable."""
        B, H, T, D = self.shape
        while B > 1 and 16 * B * H * T * max(T, D) > BATCH_BYTES:
            B //= 2
        while T > 1 and 16 * B * H * T * max(T, D) > MATRIX_BYTES:
            T //= 2
        return replace(self, shape=(B, H, T, D))

    def key(self) -> dict[str, Any]:
        """Everything the answer depends on, as JSON values."""
        on_cuda = self.device.type == "cuda"
        return {
            "version": CACHE_VERSION,
            "device": torch.cuda.get_device_name(self.device) if on_cuda else cpu_name(),
            "kind": self.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": list(self.shape),
            "dropout_p": self.dropout_p,
            "compiled": self.compiled,
            "backends": list(backends()),
        }


@dataclass(frozen=True)
class Candidate:
    """One backend: its time, or why it was not timed."""

    name: str
    time_ms: Spread | None
    """Time of one forward and backward pass."""
    why_not: str | None
    samples_ms: tuple[tuple[float, ...], ...] = ()
    """Blocks; empty for an answer from the cache."""


@dataclass(frozen=True)
class _Answer:
    """A cache file."""

    key: dict[str, Any]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Choice:
    """The backend that will run, and why."""

    backend: str
    why: str
    candidates: tuple[Candidate, ...] = ()
    """What was measured, now or when cached; empty if the backend was requested by name."""
    seconds: float = 0.0
    """Time spent on measuring; 0 for a cached answer."""


def choose(name: str, problem: Problem, *, fresh: bool = False, clock: Clock = time.perf_counter) -> Choice:
    """Choose the backend that runs.

    Args:
        name: a backend, which is only tried, or `auto` for the fastest here.
        problem: if it is too large to measure, a smaller one named in `why` decides.
        fresh: ignore the cache and measure again.
        clock: in seconds.

    Raises:
        BackendUnavailable: `name` cannot run; with every reason and the names that can.
    """
    if name != "auto":
        # One row shows whether the kernel runs; whether all rows fit in memory, the first step shows.
        _try(name, replace(problem.measurable, shape=(1, *problem.measurable.shape[1:])))
        return Choice(name, "asked for by name")
    asked, problem = problem, problem.measurable
    where = "here, compiled" if problem.compiled else "here"
    if problem != asked:
        where += f" at B, T = {problem.shape[0]:,}, {problem.shape[2]:,}"
    path = _cache_file(problem)
    candidates = None if fresh or path is None else _recall(path, problem)
    seconds, kept = 0.0, ""
    how = "as measured before"
    if candidates is None:
        began = clock()
        candidates = _measure(problem, clock)
        seconds = clock() - began
        how = f"measured in {seconds:.1f} s"
        kept = " (not remembered: no home folder)" if path is None else _remember(path, problem, candidates)
    times = ranked(candidates)
    listed = ", ".join(f"{name} {low:.3g} ms" for name, low in times.items())
    return Choice(next(iter(times)), f"the fastest {where}, {how}: {listed}{kept}", candidates, seconds)


def ranked(candidates: tuple[Candidate, ...]) -> dict[str, float]:
    """The first quartiles in ms, the lowest first; `manual` always has one."""
    lows = {candidate.name: candidate.time_ms.low for candidate in candidates if candidate.time_ms}
    return dict(sorted(lows.items(), key=itemgetter(1)))


def _measure(problem: Problem, clock: Clock) -> tuple[Candidate, ...]:
    """Check every backend, then time the correct ones in alternating blocks."""
    considered: Iterable[str] = backends()
    if problem.compiled:  # which takes seconds each: only `manual` and the uncompiled winner
        considered = dict.fromkeys(("manual", choose("auto", replace(problem, compiled=False)).backend))
    reasons = {name: _why_not(name, problem) for name in considered}
    runs = {name: one_pass(name, problem) for name, reason in reasons.items() if reason is None}
    # The shortest of three runs excludes most of the machine's other load.
    probes = alternate(runs, blocks=1, repeats=3, warmup=0, clock=clock)
    seconds = [min(*block) / 1000 for (block,) in probes.values()]
    repeats = min(MOST_REPEATS, max(1, round(BLOCK_SECONDS / max(seconds))))
    blocks = min(BLOCKS, max(FEWEST_BLOCKS, round(ALL_SECONDS / (repeats * sum(seconds)))))
    samples = alternate(runs, blocks=blocks, repeats=repeats, warmup=1, clock=clock)
    return tuple(
        Candidate(name, spread(samples[name]), None, tuple(map(tuple, samples[name])))
        if name in samples
        else Candidate(name, None, reason)
        for name, reason in reasons.items()
    )


def _why_not(name: str, problem: Problem) -> str | None:
    """Why a backend is not timed: it cannot run, or exceeds the error budget; None if it is."""
    # Kernels treat batch entries alike, so one is enough to check, and float64 stays affordable.
    checked = problem if problem.compiled else replace(problem, shape=(1, *problem.shape[1:]))
    try:
        _try(name, problem)
        qkv, attend = _random(3, checked), _attend(problem.compiled)
        verdicts = attention_accuracy(name, *qkv, causal=True, part=(1, problem.shape[1]), attend=attend)
    except BackendUnavailable as error:
        return "; ".join(error.reasons)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return "it does not fit into memory here"
    missed = [f"{verdict.name} is off by {verdict.error:.2g}" for verdict in verdicts if not verdict.good]
    return f"its answer misses the error budget: {', '.join(missed)}" if missed else None


def _try(name: str, problem: Problem) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the first reason; the error lists all
        one_pass(name, problem)()


def _random(count: int, problem: Problem) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    numbers = (torch.randn(problem.shape, generator=generator) for _ in range(count))
    return [tensor.to(problem.device, problem.dtype) for tensor in numbers]


def _attend(compiled: bool) -> Compute:
    return torch.compile(attention, fullgraph=True, dynamic=False) if compiled else attention


def one_pass(name: str, problem: Problem) -> Callable[[], object]:
    """Return the timed function: forward and backward, synchronised."""
    *qkv, cotangent = _random(4, problem)
    leaves = [tensor.requires_grad_() for tensor in qkv]
    load_backend(name)
    attend = _attend(problem.compiled)

    def run() -> None:
        out = attend(*leaves, backend=name, causal=True, dropout_p=problem.dropout_p)
        torch.autograd.grad(out, leaves, cotangent)
        if problem.device.type == "cuda":
            torch.cuda.synchronize(problem.device)

    return run


def _cache_file(problem: Problem) -> Path | None:
    folder = cache_folder()
    digest = hashlib.sha256(json.dumps(problem.key(), sort_keys=True).encode()).hexdigest()[:32]
    return None if folder is None else folder / f"{digest}.json"


def _recall(path: Path, problem: Problem) -> tuple[Candidate, ...] | None:
    """A cached answer; None if the file is missing, damaged or for another problem."""
    try:
        kept = msgspec.json.decode(read_regular(path, LARGEST_ANSWER), type=_Answer)
    except (FlashmoreError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    names = ranked(kept.candidates).keys()
    known = kept.key == problem.key() and names and names <= backends().keys()
    return kept.candidates if known else None


def _remember(path: Path, problem: Problem, candidates: tuple[Candidate, ...]) -> str:
    """Cache an answer atomically; returns a remark if that failed."""
    answer = _Answer(problem.key(), tuple(replace(candidate, samples_ms=()) for candidate in candidates))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(asdict(answer), indent=1).encode())
    except (OSError, StorageError) as error:
        return f" (not remembered: {error.found if isinstance(error, StorageError) else error.strerror})"
    return ""
