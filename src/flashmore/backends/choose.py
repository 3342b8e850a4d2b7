"""The measured choice: which backend is fastest here, for this device, dtype and shape.

Correctness first: a backend whose output or gradients exceed the error budget is not timed. The others run
forward and backward in alternating blocks. One is safe: the previous answer, or else PyTorch's own choice,
`sdpa`. Another is chosen only if it is faster than that by the interval of their ratio; of several, the one
with the lowest first quartile, since other programs only add time. The answer is cached on disk, because it
depends on the machine and the torch release, not on the day; if the interval decides nothing, it is not.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from flashmore.backends.contract import attention, attention_accuracy, load_backend
from flashmore.errors import BackendUnavailable, FlashmoreError, StorageError, is_out_of_memory
from flashmore.files import cache_folder, read_regular, replace_file
from flashmore.measuring.environment import cpu_name
from flashmore.measuring.measure import Clock, alternate
from flashmore.measuring.statistics import Spread, ratio, spread
from flashmore.specs import backends

Passes = Literal["both", "forward", "backward"]
BLOCKS, FEWEST_BLOCKS = 40, 6
ALL_SECONDS = 2.0
"""Time limit in seconds, so that `auto` does not delay training for long."""
BLOCK_SECONDS = 0.01
MOST_REPEATS = 50
BATCH_BYTES, MATRIX_BYTES = 2**28, 2**30
"""Limits for the four (T, T) matrices of a manual pass: above the first, fewer sequences are measured; above
the second, shorter ones."""
CACHE_VERSION = 4
SAFE = "sdpa"
LARGEST_ANSWER = 2**20
"""Most bytes of a cache file; ours have about 2,000."""


@dataclass(frozen=True)
class Problem:
    """An attention call of one shape on one device, for which a backend is chosen."""

    shape: tuple[int, int, int, int]
    """(B, H, T, D)."""
    dtype: torch.dtype
    """Dtype of q, k and v; under autocast, the 16-bit type."""
    device: torch.device
    dropout_p: float = 0.0
    """Dropout probability on the weights, in training."""
    compiled: bool = False
    """Inside a torch.compile graph, which fuses manual attention, so another backend may win."""
    source: int | None = None
    """S, the number of keys; None means T."""
    kv_heads: int | None = None
    """Heads of k and v, which are repeated to H as a part of the call; None means H."""
    causal: bool = True
    mask: bool = False
    """With a boolean mask (T, S)."""
    passes: Passes = "both"
    """What is timed; `forward` is inference, without a graph."""

    @property
    def measurable(self) -> "Problem":
        """The same with fewer, then shorter sequences, until a manual pass is affordable."""
        B, H, T, D = self.shape
        S = self.source or T
        while B > 1 and 16 * B * H * T * max(S, D) > BATCH_BYTES:
            B //= 2
        while max(T, S) > 1 and 16 * B * H * T * max(S, D) > MATRIX_BYTES:
            T, S = max(1, T // 2), max(1, S // 2)
        return replace(self, shape=(B, H, T, D), source=self.source and S)

    def inputs(self, B: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Random q, k and v of this many batch items, and the mask; no query is fully masked."""
        generator = torch.Generator().manual_seed(0)
        _, H, T, D = self.shape
        S = self.source or T
        sizes = ((B, H, T, D), *[(B, self.kv_heads or H, S, D)] * 2)
        q, k, v = (torch.randn(size, generator=generator).to(self.device, self.dtype) for size in sizes)
        mask = torch.rand((T, S), generator=generator) < 0.5
        mask[:, 0] = True
        return q, k, v, mask.to(self.device) if self.mask else None

    def repeated(self, *tensors: Tensor) -> list[Tensor]:
        """k and v with as many heads as q."""
        times = self.shape[1] // (self.kv_heads or self.shape[1])
        return [tensor.repeat_interleave(times, 1) if times > 1 else tensor for tensor in tensors]

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
            "source": self.source,
            "kv_heads": self.kv_heads,
            "causal": self.causal,
            "mask": self.mask,
            "passes": self.passes,
            "backends": list(backends()),
        }


@dataclass(frozen=True)
class Candidate:
    """One backend: its time, or why it was not timed."""

    name: str
    time_ms: Spread | None
    """Time of the problem's passes."""
    why_not: str | None
    samples_ms: tuple[tuple[float, ...], ...] = ()
    """Blocks; empty for an answer from the cache."""
    ratio: dict[str, str | float] | None = None
    """Time of the safe backend over this one's, as in a record; None for the safe one."""


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
        problem: the attention call. If it is too large to measure, a smaller one named in `why` decides.
        fresh: ignore the cache and measure again.
        clock: the clock.

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
    cache = cache_folder()
    path = None if cache is None else cache / f"{_digest(problem)}.json"
    before = None if path is None else _recall(path, problem)
    if before is not None and not fresh:
        best = fastest(before)
        return Choice(best.name, f"the fastest {where}, as measured before: {_times(before)}", before)
    began = clock()
    candidates = measure_candidates(problem, clock, fastest(before).name if before else SAFE)
    seconds = clock() - began
    best, rival = fastest(candidates), undecided(candidates)
    if rival:
        why = f"the safe choice, since this run did not decide whether {rival} is faster (not remembered)"
    else:
        kept = " (not remembered: no home folder)" if path is None else _remember(path, problem, candidates)
        why = f"the fastest {where}{kept}"
    why += f", measured in {seconds:.1f} s: {_times(candidates)}"
    return Choice(best.name, why, candidates, seconds)


def measure_candidates(
    problem: Problem, clock: Clock = time.perf_counter, safe: str = SAFE
) -> tuple[Candidate, ...]:
    """Check every backend, then time the correct ones in alternating blocks.

    Args:
        problem: the attention call.
        clock: the clock.
        safe: the backend to compare with; if it cannot run, the last that can.
    """
    reasons: dict[str, str | None] = {}
    runs: dict[str, Callable[[], object]] = {}
    for name in _considered(problem):
        reasons[name] = _why_not(name, problem)
        if reasons[name] is None:
            runs[name] = one_pass(name, problem)
    seconds = [_seconds(run, clock) for run in runs.values()]
    repeats = min(MOST_REPEATS, max(1, round(BLOCK_SECONDS / max(*seconds, 1e-9))))
    blocks = min(BLOCKS, max(FEWEST_BLOCKS, round(ALL_SECONDS / (repeats * sum(seconds)))))
    samples = alternate(runs, blocks=blocks, repeats=repeats, warmup=1, clock=clock)
    if safe not in samples:
        safe = list(samples)[-1]
    against = {
        name: ratio(samples[safe], blocks).to_json(safe, name)
        for name, blocks in samples.items()
        if name != safe
    }
    return tuple(
        Candidate(name, spread(samples[name]), None, tuple(map(tuple, samples[name])), against.get(name))
        if name in samples
        else Candidate(name, None, reason)
        for name, reason in reasons.items()
    )


def fastest(candidates: tuple[Candidate, ...]) -> Candidate:
    """The safe candidate, or of those that are faster the one with the lowest first quartile."""
    return next(one for one in _by_time(candidates) if one.ratio is None or one.ratio["verdict"] == "faster")


def undecided(candidates: tuple[Candidate, ...]) -> str:
    """The candidates of lower first quartiles that are faster than the chosen one or not; empty if none."""
    timed = _by_time(candidates)
    ahead = timed[: timed.index(fastest(candidates))]
    return ", ".join(one.name for one in ahead if one.ratio and one.ratio["verdict"] == "inconclusive")


def _by_time(candidates: tuple[Candidate, ...]) -> list[Candidate]:
    timed = [(one.time_ms.low, one) for one in candidates if one.time_ms is not None]
    return [one for _, one in sorted(timed, key=lambda pair: pair[0])]


def _considered(problem: Problem) -> tuple[str, ...]:
    """All backends; compiled, which takes seconds each, only `manual` and the uncompiled winner."""
    if not problem.compiled:
        return tuple(backends())
    return tuple(dict.fromkeys(("manual", choose("auto", replace(problem, compiled=False)).backend)))


def _why_not(name: str, problem: Problem) -> str | None:
    """Why a backend is not timed: it cannot run, or exceeds the error budget; None if it is."""
    B, H, *_ = problem.shape
    # Kernels treat batch entries alike, so one is enough to check, and float64 stays affordable.
    q, k, v, mask = problem.inputs(B if problem.compiled else 1)
    k, v = problem.repeated(k, v)
    attend = _attend(problem.compiled)
    try:
        _try(name, problem)
        verdicts = attention_accuracy(
            name, q, k, v, causal=problem.causal, mask=mask, part=(1, H), attend=attend
        )
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


def _attend(compiled: bool) -> Callable[..., Tensor]:
    return torch.compile(attention, fullgraph=True, dynamic=False) if compiled else attention


def one_pass(name: str, problem: Problem) -> Callable[[], object]:
    """Return the timed function: forward, backward or both, synchronised."""
    q, k, v, mask = problem.inputs(problem.shape[0])
    leaves = [tensor.requires_grad_(problem.passes != "forward") for tensor in (q, k, v)]
    load_backend(name)
    attend = _attend(problem.compiled)

    def forward() -> Tensor:
        repeated = problem.repeated(k, v)
        return attend(
            q, *repeated, backend=name, causal=problem.causal, mask=mask, dropout_p=problem.dropout_p
        )

    kept = forward() if problem.passes == "backward" else None
    cotangent = torch.ones_like(q)

    def run() -> None:
        out = forward() if kept is None else kept
        if problem.passes != "forward":
            torch.autograd.grad(out, leaves, cotangent, retain_graph=kept is not None)
        if problem.device.type == "cuda":
            torch.cuda.synchronize(problem.device)

    return run


def _seconds(run: Callable[[], object], clock: Clock) -> float:
    """The shortest of three runs, which excludes most of the machine's other load."""
    shortest = float("inf")
    for _ in range(3):
        began = clock()
        run()
        shortest = min(shortest, clock() - began)
    return shortest


def _times(candidates: tuple[Candidate, ...]) -> str:
    return ", ".join(f"{one.name} {one.time_ms.low:.3g} ms" for one in _by_time(candidates) if one.time_ms)


def _digest(problem: Problem) -> str:
    return hashlib.sha256(json.dumps(problem.key(), sort_keys=True).encode()).hexdigest()[:32]


def _recall(path: Path, problem: Problem) -> tuple[Candidate, ...] | None:
    """A cached answer; None if the file is missing, damaged or for another problem."""
    try:
        kept = msgspec.json.decode(read_regular(path, LARGEST_ANSWER), type=_Answer)
    except (FlashmoreError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    timed = _by_time(kept.candidates)
    if (
        kept.key != problem.key()
        or not {one.name for one in timed} <= backends().keys()
        or [one.ratio for one in timed].count(None) != 1
        or not all("verdict" in one.ratio for one in timed if one.ratio is not None)
    ):
        return None
    return kept.candidates


def _remember(path: Path, problem: Problem, candidates: tuple[Candidate, ...]) -> str:
    """Cache an answer atomically; returns a remark if that failed."""
    answers = [asdict(replace(candidate, samples_ms=())) for candidate in candidates]
    document = json.dumps({"key": problem.key(), "candidates": answers}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, document.encode())
    except (OSError, StorageError) as error:
        return f" (not remembered: {error.found if isinstance(error, StorageError) else error.strerror})"
    return ""
