"""Options of `bench attention`, for Python and the command line, and its costs by arithmetic."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

from flashmore.call import CallKind, CallOptions, Pass
from flashmore.config import usable_threads
from flashmore.errors import require_valid
from flashmore.specs import Kernel, backend_spec, backends

Dtype = Literal["float32", "bfloat16", "float16"]
ITEM_BYTES: dict[str, int] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
REFERENCE_BYTES = 8
SHARE_OF_FREE = 0.8
"""Share of the free memory to use; the rest is for other processes."""
Value = TypeVar("Value")
LARGEST = 2**24
"""Upper bound of sizes; larger values are typos, and exceed what any kernel supports."""


@dataclass(frozen=True, kw_only=True)
class AttentionPlan(CallKind):
    """Calls to measure: all combinations of the given values.

    Raises:
        ConfigError: a value out of range, or a call that cannot be measured.
    """

    length: tuple[int, ...] = ()
    """Numbers of queries L. If omitted, the powers of 2 from 16 to 4096, or to 16384 on a GPU."""
    source_length: tuple[int, ...] = ()
    """Numbers of keys S. If omitted, L. Use --length 1 for decoding."""
    batch_size: tuple[int, ...] = ()
    """Batch sizes B. If omitted, 2, or 4 on a GPU."""
    n_head: tuple[int, ...] = ()
    """Numbers of query heads H. If omitted, 4, or 16 on a GPU."""
    head_dim: tuple[int, ...] = ()
    """Head dimensions D. If omitted, 64, or 128 on a GPU."""
    dtype: tuple[Dtype, ...] = ()
    """Dtypes of q, k and v. If omitted, float32, or bfloat16 on a GPU."""
    backends: tuple[Kernel, ...] = tuple(name for name, spec in backends().items() if spec.kernel)
    """Attention backends. Those that cannot run are listed with the reasons."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to use; `auto` uses a GPU if there is one."""
    threads: int = 0
    """CPU threads; 0 keeps PyTorch's default."""
    seconds: float = 150.0
    """Time limit in seconds. Calls that would exceed it are skipped and listed."""
    memory: float | None = None
    """Memory limit in GiB. If omitted, 80 % of the free memory."""

    def __post_init__(self) -> None:
        for name in ("length", "source_length", "batch_size", "n_head", "head_dim"):
            for size in getattr(self, name):
                require_valid(name, size, 1 <= size <= LARGEST, f"a whole number from 1 to {LARGEST:,}")
        for backend in self.backends:
            kernels = [name for name, spec in backends().items() if spec.kernel]
            require_valid("backends", backend, backend in kernels, ", ".join(kernels))
        require_valid("backends", "none", bool(self.backends), "at least one name")
        for dtype in self.dtype:
            require_valid("dtype", dtype, dtype in ITEM_BYTES, ", ".join(ITEM_BYTES))
        usable_threads(self.threads)
        require_valid("seconds", self.seconds, 0 < self.seconds < math.inf, "above 0, for example 150")
        if self.memory is not None:
            require_valid("memory", self.memory, 0 < self.memory < math.inf, "above 0, in GiB, for example 4")

        self.calls("cpu")

    def calls(self, device: str) -> list[CallOptions]:
        """Every call to measure: all settings at the shortest length first, in the order of the options."""
        on_gpu = device == "cuda"
        longest = 16_384 if on_gpu else 4096
        powers = tuple(2**power for power in range(4, longest.bit_length()))
        kind: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(CallKind)}
        both = self.causal and self.full
        kinds = [kind | {"full": False}, kind | {"causal": False}] if both else [kind]
        found = [
            CallOptions(**each, length=L, source_length=S, batch_size=B, n_head=H, head_dim=D, dtype=dtype)
            for S in sorted(_once(self.source_length)) or (None,)
            for L in sorted(_once(self.length or powers))
            for B in _once(self.batch_size or ((4,) if on_gpu else (2,)))
            for H in _once(self.n_head or ((16,) if on_gpu else (4,)))
            for D in _once(self.head_dim or ((128,) if on_gpu else (64,)))
            for dtype in _once(self.dtype or (("bfloat16",) if on_gpu else ("float32",)))
            for each in kinds
        ]
        for one in found:
            one.require_measurable()
        return found


def described(one: CallOptions) -> dict[str, Any]:
    """The fields of a call in a record; everything but T, the number of keys, is its setting."""
    return {
        "B": one.batch_size,
        "H": one.n_head,
        "T": one.keys,
        "D": one.head_dim,
        "dtype": one.dtype,
        "causal": one.is_causal,
        "L": None if one.source_length is None else one.length,
        "H_kv": one.kv_heads,
        "D_v": one.values,
        "mask": one.mask_words,
        "dropout_p": one.dropout,
        "passes": one.passes,
    }


def setting_of(one: CallOptions) -> CallOptions:
    """Everything except the number of keys: the calls of one setting form one curve against it."""
    if one.source_length is None:
        return replace(one, length=0)
    return replace(one, source_length=0)


def _once(values: tuple[Value, ...]) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(values))


def attention_flops(
    B: int, H: int, L: int, S: int, D: int, *, causal: bool, which: Pass, D_v: int | None = None
) -> float:
    """Floating-point operations of attention, as published benchmarks count them.

    Forward 2·B·H·L·S·(D + D_v), 4·B·H·L·S·D where D_v is D: two products. Half of it when causal. Backward,
    which has five such products, 2.5 times as many. The count is the same for every backend: computing the
    masked half, or the scores twice, does not count (Dao 2023, FlashAttention-2, section 4).

    Args:
        B, H, L, S, D, D_v: batch, query heads, queries, keys, channels per head and per value (none: D).
    """
    forward = 2.0 * B * H * L * S * (D + (D if D_v is None else D_v)) * (0.5 if causal else 1.0)
    return forward * {"forward": 1.0, "backward": 2.5, "both": 3.5}[which]


def _elements(one: CallOptions) -> tuple[int, int, int]:
    """Numbers in q, in k and v together, and in the output."""
    queries, keys = one.pairs * one.length, one.batch_size * one.kv_heads * one.keys
    return queries * one.head_dim, keys * (one.head_dim + one.values), queries * one.values


def peak_estimate(backend: str, one: CallOptions, *, device: str, threads: int) -> int:
    """Estimate the peak bytes of the passes together, beyond q, k, v and the mask.

    - `manual` holds three (L, S) matrices per head at once (in the backward pass: the weights, their
      gradient, and that of the scores; two in inference), and a byte mask. Grouped heads of k and v are
      repeated, and so are their gradients.
    - `math` holds three as well. Its forward pass holds two, a byte for each score, and a floating-point
      mask. It computes in at least float32, so 16-bit inputs are copied.
    - The fused kernels hold no matrix: output, gradients, one number per row, and tiles. On the CPU each
      thread has one tile in the forward and two in the backward pass, of up to 256 × 512 float32. On CUDA the
      tiles are on-chip, and gradients may be accumulated in float32: an upper estimate.
    """
    item, training = ITEM_BYTES[one.dtype], one.passes != "forward"
    L, S = one.length, one.keys
    scores, (q, kv, out) = one.pairs * L * S, _elements(one)
    elements = out + (q + kv) * training
    repeated = (one.n_head // one.kv_heads) * kv * (1 + training) if one.kv_heads != one.n_head else 0
    matrices = (3 if training else 2) + bool(one.dropout)
    hidden = L * S * (one.is_causal or one.mask != "none")
    if backend == "math":
        lifted = (q + kv) * 4 if item < 4 else 0
        forward = scores * (2 * 4 + 1) + 4 * hidden + 2 * q * 4
        return max(forward, matrices * scores * 4 + elements * 4) + lifted + repeated * max(4, item)
    if backend_spec(backend).materializes_scores:
        return (matrices * scores + elements + repeated) * item + hidden
    rows = 8 * one.pairs * L
    if device == "cpu":
        queries = 256 if L >= 768 else 64 if L >= 192 else 32  # of a tile of the CPU kernel
        tile_bytes = 4 * min(queries, L) * min(512, S)
        return (elements + q) * item + rows + threads * 2 * tile_bytes
    return elements * (item + 4) + rows


def inputs_bytes(one: CallOptions) -> int:
    """Bytes of q, k, v, the mask and the incoming gradient."""
    mask = one.call("cpu").mask
    return (sum(_elements(one)) + (0 if mask is None else math.prod(mask))) * ITEM_BYTES[one.dtype]


def check_bytes(one: CallOptions, checked_pairs: int) -> int:
    """Bytes for comparing this many (L, S) matrices with `manual` in float64."""
    return (3 * checked_pairs * one.length * one.keys + 2 * sum(_elements(one))) * REFERENCE_BYTES
