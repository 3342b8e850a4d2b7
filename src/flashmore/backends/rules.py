"""Why a backend can or cannot run: our own table, one row a rule, so that all reasons are told at once.

PyTorch answers with the first failed check, in texts that change between releases, and on a CPU-only build
with nothing at all. So the rules are stated here, for torch 2.11 to 2.13, and tests hold each row against
what the installed torch really does. Rows for CUDA come from
https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html and
from the messages of torch itself; the tests for them run where there is a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

from flashmore.backends.names import BACKENDS, FUSED, Backend
from flashmore.errors import RecipeError

SIXTEEN_BIT = ("float16", "bfloat16")


@dataclass(frozen=True)
class AttentionCall:
    """Everything about a call of scaled_dot_product_attention that decides which kernel can run.

    Shapes: query (B, H, L, D), key (B, H_kv, S, D), value (B, H_kv, S, D_v).

    Raises:
        RecipeError: a size below 1, or shapes that no backend takes.
    """

    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    dtype: str = "float32"
    device: str = "cpu"
    """`cpu`, `cuda` or `mps`."""
    mask: tuple[int, ...] | None = None
    """The mask's shape, or None."""
    mask_dtype: str = "bool"
    mask_needs_grad: bool = False
    causal: bool = False
    dropout_p: float = 0.0
    needs_grad: bool = True
    """Training: a backward pass follows."""
    gqa: bool = False
    """`enable_gqa=True`: H_kv may divide H."""
    unit_stride: bool = True
    """The last dimension of q, k and v is contiguous."""
    capability: tuple[int, int] = (8, 0)
    """CUDA compute capability; (9, 0) is an H100."""
    deterministic: bool = False
    """`torch.use_deterministic_algorithms(True)` is on."""

    def __post_init__(self) -> None:
        for name in ("query", "key", "value"):
            shape = getattr(self, name)
            if len(shape) < 2 or min(shape) < 1:
                raise RecipeError(
                    f"a {name} of at least two dimensions, each at least 1", f"{shape}", "(B, H, T, D)"
                )
        if self.key[-1] != self.query[-1] or self.value[-2] != self.key[-2]:
            raise RecipeError(
                "query (…, L, D), key (…, S, D), value (…, S, D_v)",
                f"{self.query}, {self.key}, {self.value}",
                "the same D in query and key, the same S in key and value",
            )

    @property
    def heads_match(self) -> bool:
        """Whether the batch sizes are equal, and the heads are equal or may be grouped."""
        q, k, v = self.query[:-2], self.key[:-2], self.value[:-2]
        if q == k == v:
            return True
        return self.gqa and len(q) == 2 and k == v and q[0] == k[0] and q[1] % k[1] == 0


@dataclass(frozen=True)
class Rule:
    """One reason for which some backends cannot run on some device."""

    device: str
    backends: tuple[Backend, ...]
    breaks: Callable[[AttentionCall], bool]
    reason: str
    """In plain words; `{call}` is filled in."""
    change: str
    """What to change so that the rule no longer applies."""


@dataclass(frozen=True)
class Reason:
    """A rule that a call breaks: why the backend cannot run, and what to change."""

    why: str
    change: str

    def __str__(self) -> str:
        return f"{self.why} ({self.change})"


EVERY_KERNEL: tuple[Backend, ...] = ("sdpa", "math", "flash", "efficient", "cudnn")


def _multiple(call: AttentionCall, of: int) -> bool:
    return call.query[-1] % of == 0 and call.value[-1] % of == 0


RULES: tuple[Rule, ...] = (
    # Any device.
    Rule(
        "any",
        EVERY_KERNEL,
        lambda call: call.mask is not None and call.mask_dtype not in ("bool", "float32", call.dtype),
        "a mask of {call.mask_dtype} meets queries of {call.dtype}",
        "make the mask bool, float32 or {call.dtype}",
    ),
    Rule(
        "any",
        ("math",),
        lambda call: call.mask is not None and call.causal,
        "attn_mask and is_causal=True are given together",
        "combine both into one mask",
    ),
    Rule(
        "any",
        FUSED,
        lambda call: not len(call.query) == len(call.key) == len(call.value) == 4,
        "q, k and v have {call.query}, {call.key} and {call.value}, which are not all 4-D",
        "lift them to (B, H, T, D), for example with q[:, None]",
    ),
    Rule(
        "any",
        FUSED,
        lambda call: not call.heads_match,
        "batch sizes or heads differ: q {call.query}, k {call.key}, v {call.value}",
        "expand k and v to q's batch and heads, or pass enable_gqa=True where k's heads divide q's",
    ),
    Rule(
        "any",
        FUSED,
        lambda call: not call.unit_stride,
        "the last dimension of q, k or v is not contiguous",
        "call .contiguous() on it",
    ),
    # The CPU: FLASH is a CPU kernel of that name; the other two names have none.
    Rule(
        "cpu",
        ("efficient", "cudnn"),
        lambda _: True,
        "PyTorch has no CPU kernel of this name",
        "use flash, a CPU kernel of that name, or a CUDA device",
    ),
    Rule(
        "cpu",
        ("flash",),
        lambda call: call.dtype not in ("float32", "float64", *SIXTEEN_BIT),
        "the dtype is {call.dtype}",
        "use float32, float64, bfloat16 or float16",
    ),
    Rule(
        "cpu",
        ("flash",),
        lambda call: call.dropout_p > 0,
        "dropout_p = {call.dropout_p}, and the CPU kernel knows no dropout",
        "set dropout_p=0.0, or drop out after attention",
    ),
    Rule(
        "cpu",
        ("flash",),
        lambda call: call.value[-1] != call.query[-1],
        "the value's head dimension {call.value[3]} differs from the query's {call.query[3]}",
        "pad the smaller one",
    ),
    Rule(
        "cpu",
        ("flash",),
        lambda call: call.mask is not None and len(call.mask) not in (2, 4),
        "the mask {call.mask} is neither 2-D nor 4-D",
        "give it (T, S) or (B, H, T, S), with 1 where it repeats",
    ),
    Rule(
        "cpu",
        ("flash",),
        lambda call: call.mask is not None and call.mask_needs_grad,
        "the mask needs a gradient",
        "detach the mask if it is not learned",
    ),
    # MPS: everything goes through MATH, with an operator of its own.
    Rule(
        "mps",
        FUSED,
        lambda _: True,
        "PyTorch has no MPS kernel of this name",
        "use sdpa or math",
    ),
    # CUDA.
    Rule(
        "cuda",
        ("flash", "cudnn"),
        lambda call: call.dtype not in SIXTEEN_BIT,
        "the dtype is {call.dtype}",
        "use bfloat16 or float16, for example under autocast",
    ),
    Rule(
        "cuda",
        ("efficient",),
        lambda call: call.dtype not in ("float32", *SIXTEEN_BIT),
        "the dtype is {call.dtype}",
        "use float32, bfloat16 or float16",
    ),
    Rule(
        "cuda",
        ("flash", "cudnn"),
        lambda call: call.capability < (8, 0),
        "the GPU has compute capability {call.capability[0]}.{call.capability[1]}",
        "it needs 8.0 or newer (Ampere); efficient runs on older ones",
    ),
    Rule(
        "cuda",
        ("flash",),
        lambda call: call.mask is not None,
        "FlashAttention takes no attn_mask",
        "use is_causal=True if the mask is causal and square, or another backend",
    ),
    Rule(
        "cuda",
        ("flash",),
        lambda call: call.causal and call.query[-2] != call.key[-2],
        "is_causal=True with L = {call.query[2]} and S = {call.key[2]}: it would be aligned bottom-right",
        "use L = S, or an explicit mask with another backend",
    ),
    Rule(
        "cuda",
        ("flash",),
        lambda call: call.value[-1] != call.query[-1],
        "the value's head dimension {call.value[3]} differs from the query's {call.query[3]}",
        "pad the smaller one",
    ),
    Rule(
        "cuda",
        ("flash",),
        lambda call: call.query[-1] > 256,
        "the head dimension {call.query[3]} is above 256",
        "use more heads of at most 256 channels",
    ),
    Rule(
        "cuda",
        ("efficient",),
        lambda call: not _multiple(call, 4 if call.dtype == "float32" else 8),
        "the head dimensions {call.query[3]} and {call.value[3]} are not multiples of 8 (of 4 in float32)",
        "pad the head dimension",
    ),
    Rule(
        "cuda",
        ("efficient",),
        lambda call: call.gqa and call.query[1] != call.key[1],
        "grouped heads: {call.query[1]} of q share {call.key[1]} of k and v",
        "repeat k and v to q's heads, or use flash",
    ),
    Rule(
        "cuda",
        ("cudnn",),
        lambda call: not _multiple(call, 8),
        "the head dimensions {call.query[3]} and {call.value[3]} are not multiples of 8",
        "pad the head dimension",
    ),
    Rule(
        "cuda",
        ("cudnn",),
        lambda call: max(call.query[-1], call.value[-1]) > 256,
        "the head dimension is above 256",
        "use more heads of at most 256 channels",
    ),
    Rule(
        "cuda",
        ("cudnn",),
        lambda call: call.dropout_p * 16 % 1 != 0,
        "dropout_p = {call.dropout_p} is not a multiple of 1/16",
        "use 0, 0.0625, 0.125, …",
    ),
    Rule(
        "cuda",
        ("cudnn",),
        lambda call: call.deterministic and call.needs_grad,
        "deterministic algorithms are asked for and a backward pass follows",
        "use math, or torch.use_deterministic_algorithms(False)",
    ),
)


def reasons_against(backend: str, call: AttentionCall) -> tuple[Reason, ...]:
    """Every reason for which `backend` cannot run `call`; empty if it can."""
    return tuple(
        Reason(rule.reason.format(call=call), rule.change.format(call=call))
        for rule in RULES
        if rule.device in ("any", call.device) and backend in rule.backends and rule.breaks(call)
    )


def usable(call: AttentionCall) -> tuple[Backend, ...]:
    """The backends that no rule speaks against, in the order of `BACKENDS`."""
    return tuple(backend for backend in BACKENDS if not reasons_against(backend, call))
