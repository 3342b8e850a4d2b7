"""The measured choice: which backend is fastest here, for this device, dtype and shape.

Correctness first: a backend whose output or gradients exceed the error budget is not timed. The others run
forward and backward in alternating blocks. One is safe: the previous answer, or else PyTorch's own choice,
`sdpa`. Another is chosen only if it is faster by the whole interval of their ratio; of several, the one with
the lowest first quartile, since other programs only add time. The answer is cached on disk, because it
depends on the machine and the torch release only; if the interval decides nothing, it is not cached.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from flashmore.backends.contract import attention, attention_accuracy, load_backend, random_inputs
from flashmore.call import CallOptions
from flashmore.errors import BackendUnavailable, FlashmoreError, StorageError, is_out_of_memory
from flashmore.files import cache_folder, read_regular, replace_file
from flashmore.measuring.environment import cpu_name
from flashmore.measuring.measure import Clock, alternate
from flashmore.measuring.statistics import Spread, ratio, spread
from flashmore.rules import AttentionCall
from flashmore.specs import backend_spec, backends

BLOCKS, FEWEST_BLOCKS = 40, 6
ALL_SECONDS = 2.0
"""Time limit in seconds, so that `auto` does not delay training for long."""
BLOCK_SECONDS = 0.01
MOST_REPEATS = 50
BATCH_BYTES, MATRIX_BYTES = 2**28, 2**30
"""Limits for the four (T, T) matrices of a manual pass: above the first, fewer sequences are measured; above
the second, shorter ones."""
CACHE_VERSION = 5
SAFE = "sdpa"
LARGEST_ANSWER = 2**20
"""Most bytes of a cache file; ours have about 2,000."""


@dataclass(frozen=True)
class Problem:
    """An attention call on one device, for which a backend is chosen.

    Raises:
        ConfigError: a call that cannot be measured.
    """

    options: CallOptions
    device: torch.device
    compiled: bool = False
    """Inside a torch.compile graph, which fuses manual attention, so another backend may win."""

    def __post_init__(self) -> None:
        self.options.require_measurable()

    @property
    def call(self) -> AttentionCall:
        """The call as the rules take it."""
        return self.options.call(self.device.type)

    @property
    def measurable(self) -> "Problem":
        """The same with fewer, then shorter sequences, until a manual pass is affordable."""
        one = self.options
        B, L, S = one.batch_size, one.length, one.keys
        while B > 1 and 16 * B * one.n_head * L * max(S, one.head_dim) > BATCH_BYTES:
            B //= 2
        while max(L, S) > 1 and 16 * B * one.n_head * L * max(S, one.head_dim) > MATRIX_BYTES:
            L, S = max(1, L // 2), max(1, S // 2)
        source = None if one.source_length is None else S
        return self.changed(batch_size=B, length=L, source_length=source)

    def changed(self, **sizes: int | None) -> "Problem":
        """The same with other sizes."""
        return replace(self, options=replace(self.options, **sizes))  # type: ignore[arg-type]

    def key(self) -> dict[str, Any]:
        """Everything the answer depends on, as JSON values."""
        one, on_cuda = self.options, self.device.type == "cuda"
        return {
            "version": CACHE_VERSION,
            "device": torch.cuda.get_device_name(self.device) if on_cuda else cpu_name(),
            "kind": self.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "dtype": one.dtype,
            "shape": [one.batch_size, one.n_head, one.length, one.head_dim],
            "dropout_p": one.dropout,
            "compiled": self.compiled,
            "source": one.source_length,
            "kv_heads": one.n_kv_head,
            "value_dim": one.value_dim,
            "causal": one.is_causal,
            "mask": one.mask_words,
            "passes": one.passes,
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
    ratio: dict[str, str | int | float] | None = None
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

    Raises:
        BackendUnavailable: `name` cannot run; with every reason and the names that can.
    """
    cache = cache_folder()
    if problem.compiled and cache is not None:  # PyTorch's compiler would let the user's group change it
        with suppress(OSError):
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if name != "auto":
        # One row shows whether the kernel runs; whether all rows fit in memory, the first step shows.
        _try(name, problem.measurable.changed(batch_size=1))
        return Choice(name, "as requested")
    asked, problem = problem, problem.measurable
    where = "here, compiled" if problem.compiled else "here"
    if problem != asked:
        where += f" at B, T = {problem.options.batch_size:,}, {problem.options.length:,}"
    path = None if cache is None else cache / f"{_digest(problem)}.json"
    before = None if path is None else _recall(path, problem)
    if before is not None and not fresh:
        best = fastest(before)
        return Choice(best.name, f"the fastest {where}, measured earlier: {_times(before)}", before)
    began = clock()
    candidates = measure_candidates(problem, clock, fastest(before).name if before else SAFE)
    seconds = clock() - began
    best, rival = fastest(candidates), undecided(candidates)
    if rival:
        why = f"the safe choice, since the measurement does not show whether {rival} is faster (not cached)"
    else:
        kept = " (not cached: no home folder)" if path is None else _remember(path, problem, candidates)
        why = f"the fastest {where}{kept}"
    why += f", measured in {seconds:.1f} s: {_times(candidates)}"
    return Choice(best.name, why, candidates, seconds)


def measure_candidates(
    problem: Problem, clock: Clock = time.perf_counter, safe: str = SAFE
) -> tuple[Candidate, ...]:
    """Check every backend, then time the correct ones in alternating blocks.

    Args:
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
    if backend_spec(name).compiled:
        return f"compiling it takes seconds for each shape; bench attention --backends {name} measures it"
    options = problem.options
    # Kernels treat batch entries alike, so one is enough to check, and float64 stays affordable.
    one = problem if problem.compiled else problem.changed(batch_size=1)
    q, k, v, mask = random_inputs(one.call, problem.device)
    attend = _attend(problem.compiled)
    try:
        _try(name, problem)
        verdicts = attention_accuracy(
            name,
            *(q, k, v),
            causal=options.is_causal,
            mask=mask,
            gradients=options.passes != "forward",
            part=(1, options.n_head),
            attend=attend,
        )
    except BackendUnavailable as error:
        return "; ".join(error.reasons)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return "it does not fit in memory"
    missed = [f"{verdict.name} is off by {verdict.error:.2g}" for verdict in verdicts if not verdict.good]
    return f"its error exceeds the budget: {', '.join(missed)}" if missed else None


def _try(name: str, problem: Problem) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the first reason; the error lists all
        one_pass(name, problem)()


def _attend(compiled: bool) -> Callable[..., Tensor]:
    return torch.compile(attention, fullgraph=True, dynamic=False) if compiled else attention


def one_pass(name: str, problem: Problem) -> Callable[[], object]:
    """Return the timed function: forward, backward or both, synchronised."""
    options = problem.options
    q, k, v, mask = random_inputs(problem.call, problem.device)
    load_backend(name)
    attend = _attend(problem.compiled)

    def forward() -> Tensor:
        causal, dropout_p = options.is_causal, options.dropout
        return attend(q, k, v, backend=name, causal=causal, mask=mask, dropout_p=dropout_p)

    kept = forward() if options.passes == "backward" else None
    cotangent = torch.ones((*q.shape[:3], v.size(3)), dtype=q.dtype, device=q.device)

    def run() -> None:
        out = forward() if kept is None else kept
        if options.passes != "forward":
            torch.autograd.grad(out, (q, k, v), cotangent, retain_graph=kept is not None)
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
    return (
        ", ".join(f"{one.name} {one.time_ms.low:.3g} ms" for one in _by_time(candidates) if one.time_ms)
        + " (lower quartiles)"
    )


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
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, document.encode())
    except (OSError, StorageError) as error:
        return f" (not cached: {error.found if isinstance(error, StorageError) else error.strerror})"
    return ""
