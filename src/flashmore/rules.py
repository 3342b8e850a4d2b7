"""Which attention kernels support a call, as rules, one per row; does not import torch.

PyTorch reports only the first failed check, in messages that change between releases, and on a CPU-only build
nothing for CUDA. So all reasons are stated here, for torch 2.11 to 2.13. A test compares every row for the
CPU, and with a GPU every row for CUDA, with the installed torch. The rows for CUDA and MPS come from
https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html and from
PyTorch's own checks (ATen/native/transformers/cuda/sdp_utils.cpp) and were not probed; `explain` runs every
backend if the device is present, which overrides this table.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, get_args

from flashmore.errors import ConfigError

Device = Literal["cpu", "cuda", "mps"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]
DEVICES: tuple[Device, ...] = get_args(Device)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
MASK_DTYPES = ("bool", *DTYPES, "uint8", "int8", "int16", "int32", "int64")

Shape = tuple[int, ...]
Kernels = tuple[tuple[Device, str], ...]


@dataclass(frozen=True)
class AttentionCall:
    """The properties of a scaled_dot_product_attention call that determine which kernels can run.

    Shapes: query (…, H, L, D), key (…, H_kv, S, D), value (…, H_kv, S, D_v), two dimensions or more. The
    leading dimensions broadcast, and with `gqa` H_kv may divide H.

    Raises:
        ConfigError: a call that no kernel supports on any device: a size below 1, incompatible shapes, a mask
            that does not broadcast to the (…, H, L, S) scores, an unknown dtype or device, or a dropout
            outside [0, 1].
    """

    query: Shape
    key: Shape
    value: Shape
    dtype: str = "float32"
    device: str = "cpu"
    mask: Shape | None = None
    """Its shape."""
    mask_dtype: str = "bool"
    mask_needs_grad: bool = False
    """The mask has requires_grad=True, even if no backward pass follows."""
    mask_unit_stride: bool = True
    """The last dimension of the mask is contiguous."""
    causal: bool = False
    dropout_p: float = 0.0
    needs_grad: bool = True
    """Training: a backward pass follows."""
    gqa: bool = False
    """`enable_gqa=True`."""
    unit_stride: bool = True
    """The last dimension of q, k and v has stride 1."""
    capability: tuple[int, int] = (8, 0)
    """CUDA compute capability; (9, 0) is an H100."""
    deterministic: bool = False
    """`torch.use_deterministic_algorithms(True)` is on."""

    def __post_init__(self) -> None:
        _require_known("device", self.device, DEVICES)
        _require_known("dtype of q, k and v", self.dtype, DTYPES)
        _require_known("dtype of the mask", self.mask_dtype, MASK_DTYPES)
        if not 0 <= self.dropout_p <= 1:
            raise ConfigError(
                "a dropout from 0 to 1", f"{self.dropout_p}", "0 for no dropout, or for example 0.1"
            )
        if self.mask_needs_grad and (self.mask is None or self.mask_dtype not in DTYPES):
            wanted = "a mask of floating-point numbers, where the mask needs a gradient"
            given = "no mask" if self.mask is None else f"a mask of {self.mask_dtype}"
            raise ConfigError(wanted, given, "a mask of " + ", ".join(DTYPES))
        for name, shape in (("query", self.query), ("key", self.key), ("value", self.value)):
            if len(shape) < 2 or min(shape) < 1:
                wanted = f"a {name} of at least two dimensions, each at least 1"
                raise ConfigError(wanted, f"{shape}", "(B, H, T, D)")
        found = f"{self.query}, {self.key}, {self.value}"
        if self.key[-1] != self.query[-1] or self.value[-2] != self.key[-2]:
            valid = "the same D in query and key, the same S in key and value"
            raise ConfigError("query (…, L, D), key (…, S, D), value (…, S, D_v)", found, valid)
        scores = (*self._scores_lead(found), self.length, self.source_length)
        if self.mask is not None and _broadcast(self.mask, scores) != scores:
            valid = f"{scores[-2:]} or {scores}, with 1 where it repeats"
            raise ConfigError(f"a mask that fits the scores, {scores}", f"{self.mask}", valid)

    @property
    def head_dim(self) -> int:
        """D, of q and k."""
        return self.query[-1]

    @property
    def value_dim(self) -> int:
        """D_v."""
        return self.value[-1]

    @property
    def length(self) -> int:
        """L, the number of queries."""
        return self.query[-2]

    @property
    def source_length(self) -> int:
        """S, the number of keys."""
        return self.key[-2]

    @property
    def four_dimensional(self) -> bool:
        """q, k and v are all (B, H, T, D)."""
        return len(self.query) == len(self.key) == len(self.value) == 4

    @property
    def leads_equal(self) -> bool:
        """Whether q, k and v have the same batch size and the same number of heads."""
        return self.query[:-2] == self.key[:-2] == self.value[:-2]

    @property
    def grouped(self) -> bool:
        """Whether the batch sizes are equal and `gqa` lets the heads differ."""
        return self.gqa and self.query[:-3] == self.key[:-3] == self.value[:-3]

    def _scores_lead(self, found: str) -> Shape:
        """The leading dimensions of q @ kᵀ, after grouped heads are repeated."""
        q, k, v = self.query[:-2], self.key[:-2], self.value[:-2]
        if self.gqa:
            if min(len(q), len(k), len(v)) < 1 or q[-1] % k[-1] or q[-1] % v[-1]:
                wanted = "with enable_gqa, a number of k and v heads that divides q's"
                raise ConfigError(wanted, found, "(B, H, L, D) and (B, H_kv, S, D), where H_kv divides H")
            k, v = (*k[:-1], q[-1]), (*v[:-1], q[-1])
        scores = _broadcast(q, k)
        if scores is None or _broadcast(scores, v) is None:
            valid = "the same sizes, or enable_gqa if k's heads divide q's"
            raise ConfigError("batch sizes and heads of q, k and v that are equal or 1", found, valid)
        return scores


def _require_known(what: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise ConfigError(f"a known {what}", f"'{found}'", ", ".join(known))


def _broadcast(one: Shape, other: Shape) -> Shape | None:
    """The shape that two shapes broadcast to; None if they do not."""
    pairs = list(zip_longest(reversed(one), reversed(other), fillvalue=1))
    if any(first != second and 1 not in (first, second) for first, second in pairs):
        return None
    return tuple(second if first == 1 else first for first, second in reversed(pairs))


@dataclass(frozen=True)
class Rule:
    """One reason why some kernels cannot compute a call."""

    kernels: Kernels
    """The device and the backend of each."""
    breaks: Callable[[AttentionCall], bool]
    reason: str
    """In plain words; `{call}` is filled in."""
    change: str
    """What to change so that the rule no longer applies; likewise."""

    def breaks_on(self, backend: str, call: AttentionCall) -> bool:
        """Whether the rule applies to this backend on the call's device, and the call breaks it."""
        return (call.device, backend) in self.kernels and self.breaks(call)

    def filled(self, call: AttentionCall) -> "Reason":
        """Its message for this call."""
        return Reason(self.reason.format(call=call), self.change.format(call=call))


@dataclass(frozen=True)
class Reason:
    """Why a backend cannot run, and what to change."""

    why: str
    change: str

    def __str__(self) -> str:
        return f"{self.why} ({self.change})"


def on(device: Device, *backends: str) -> Kernels:
    """These backends on this device."""
    return tuple((device, backend) for backend in backends)


def everywhere(*backends: str) -> Kernels:
    """These backends on every device."""
    return tuple((device, backend) for device in DEVICES for backend in backends)


FUSED = ("flash", "efficient", "cudnn")
TOP_LEFT = ("manual", "sdpa", "math")
FLASH = on("cpu", "flash") + on("cuda", "flash")
FLASH_ON_CUDA = on("cuda", "flash", "varlen")
EVERY_FUSED = on("cpu", "flash") + on("cuda", *FUSED)
CUDNN_OR_CPU_FLASH = on("cpu", "flash") + on("cuda", "cudnn")
LARGE_GIB = 4
"""Size of the matrix of weights from which on it is mentioned."""


def can_run(kernel: str, call: AttentionCall) -> bool:
    """Whether no row excludes one of PyTorch's kernels."""
    return not any(rule.breaks_on(kernel, call) for rule in RULES)


def mask_and_causal(call: AttentionCall) -> bool:
    """Whether the call has a mask and is causal."""
    return call.mask is not None and call.causal


def _flash_groups(call: AttentionCall) -> bool:
    return call.leads_equal or (call.grouped and call.key[-3] == call.value[-3])


def in_contract(call: AttentionCall) -> bool:
    """Whether the sizes are those that `flashmore.backends.contract.attention` takes."""
    if not call.four_dimensional or call.key[:2] != call.value[:2] or call.query[0] != call.key[0]:
        return False
    return call.query[1] % call.key[1] == 0


def _index_error(call: AttentionCall) -> bool:
    """PyTorch reads the mask's second-last size when no other check has refused flash before."""
    short = call.mask is not None and len(call.mask) < 2 and not call.mask_needs_grad
    return short and call.dropout_p == 0 and call.four_dimensional and _flash_groups(call)


def _exceeds_shared_memory(call: AttentionCall) -> bool:
    small = (8, 6) <= call.capability <= (8, 9) or call.capability >= (12, 0)
    wide = 192 < call.head_dim <= 224 or (call.head_dim > 224 and call.dropout_p > 0)
    return call.needs_grad and small and wide


def _aligned(call: AttentionCall) -> bool:
    """Whether the memory-efficient kernel takes these numbers of channels."""
    if call.capability < (7, 0) or (call.capability < (8, 0) and call.dtype == "float32"):
        return True  # without tensor cores
    multiple = 4 if call.dtype == "float32" else 8
    return call.head_dim % multiple == call.value_dim % multiple == 0


def _cudnn_takes(call: AttentionCall) -> bool:
    dims = (call.head_dim, call.value_dim)
    return max(dims) <= 128 or (dims == (192, 128) and call.capability[0] in (9, 10))


def _misread(call: AttentionCall) -> bool:
    return call.dtype == "float64" and call.mask is not None and call.mask_dtype == "float32"


def _large(call: AttentionCall) -> bool:
    """Whether the (…, L, S) scores, in the call's dtype, are large."""
    entries = math.prod(call.query[:-1]) * call.source_length
    return entries * {"float64": 8, "float32": 4}.get(call.dtype, 2) >= LARGE_GIB * 2**30


RULES: tuple[Rule, ...] = (
    Rule(everywhere("sdpa", "math", *FUSED),
         lambda call: call.mask is not None and call.mask_dtype not in ("bool", "float32", call.dtype),
         "the mask is {call.mask_dtype} and q is {call.dtype}", "use bool, float32 or {call.dtype}"),
    Rule(everywhere("math"), mask_and_causal,
         "math rejects attn_mask together with is_causal=True", "combine both into one mask"),
    Rule(everywhere("sdpa"),
         lambda call: mask_and_causal(call) and not any(can_run(kernel, call) for kernel in FUSED),
         "without a fused kernel PyTorch falls back to math, which rejects attn_mask with is_causal=True",
         "combine both into one mask"),
    Rule(EVERY_FUSED, lambda call: not call.four_dimensional,
         "q {call.query}, k {call.key}, v {call.value} are not all 4-D",
         "add dimensions, for example q[:, None]"),
    Rule(FLASH, lambda call: not _flash_groups(call),
         "batch sizes or heads differ, and up to torch 2.13 this kernel does not broadcast:"
         " q {call.query}, k {call.key}, v {call.value}",
         "expand k and v to q's batch; pass enable_gqa=True where k and v share heads that divide q's"),
    Rule(on("cpu", "flash") + on("cuda", "efficient"), lambda call: not call.unit_stride,
         "the last dimension of q, k or v is not contiguous", "call .contiguous() on it"),
    Rule((*FLASH, ("cuda", "varlen")), lambda call: call.value_dim != call.head_dim,
         "v has {call.value_dim} channels a head, q has {call.head_dim}", "pad the smaller one with zeros"),
    Rule(CUDNN_OR_CPU_FLASH, lambda call: call.mask is not None and len(call.mask) not in (2, 4),
         "the mask {call.mask} is neither 2-D nor 4-D", "make it (L, S) or (B, H, L, S), 1 where it repeats"),
    Rule(CUDNN_OR_CPU_FLASH, lambda call: call.mask_needs_grad,
         "the mask needs a gradient", "detach the mask if it is not learned, even under no_grad"),
    # CPU
    Rule(on("cpu", "efficient", "cudnn"), lambda _: True,
         "PyTorch has no CPU kernel of this name",
         "use flash, which has a CPU kernel, or a CUDA device"),
    Rule(on("cpu", "flash"), lambda call: call.dropout_p > 0,
         "dropout_p = {call.dropout_p}, which the CPU kernel does not support",
         "set dropout_p=0.0, or apply dropout after attention"),
    Rule(on("cpu", "sdpa"), _index_error,
         "PyTorch reads the second-to-last dimension of the mask {call.mask} (IndexError)",
         "make it (1, S), or force math, which does not read it"),
    # MPS
    Rule(on("mps", *FUSED), lambda _: True,
         "PyTorch has no MPS kernel of this name", "use sdpa or math, which have their own operators"),
    Rule(on("mps", "manual", "sdpa", "math"), lambda call: call.dtype == "float64",
         "MPS has no float64", "use float32"),
    # CUDA
    Rule(on("cuda", "flash", "cudnn", "varlen"), lambda call: call.dtype not in ("float16", "bfloat16"),
         "the dtype is {call.dtype}", "use bfloat16 or float16, for example under autocast"),
    Rule(on("cuda", "efficient"), lambda call: call.dtype == "float64",
         "the dtype is float64", "use float32, bfloat16 or float16"),
    Rule(on("cuda", "efficient"), lambda call: call.dtype == "bfloat16" and call.capability < (8, 0),
         "bfloat16 on compute capability {call.capability[0]}.{call.capability[1]}",
         "use float16 or float32; bfloat16 needs 8.0 or newer (Ampere)"),
    Rule(on("cuda", "flash", "cudnn", "varlen"), lambda call: not (8, 0) <= call.capability <= (12, 1),
         "the GPU has compute capability {call.capability[0]}.{call.capability[1]}",
         "it needs 8.0 (Ampere) to 12.1; efficient runs on older ones"),
    Rule(FLASH_ON_CUDA, lambda call: call.mask is not None,
         "FlashAttention does not support attn_mask",
         "use is_causal=True if the mask is causal and square, or another backend"),
    Rule(FLASH_ON_CUDA, lambda call: call.causal and call.length != call.source_length,
         "is_causal=True with L = {call.length}, S = {call.source_length}: it would be aligned bottom-right",
         "use L = S, or an explicit mask with another backend"),
    Rule(FLASH_ON_CUDA, lambda call: call.head_dim > 256,
         "the head dimension {call.head_dim} is above 256", "use more heads of at most 256 channels"),
    Rule(FLASH_ON_CUDA, _exceeds_shared_memory,
         "training with head dimension {call.head_dim} and dropout {call.dropout_p} on compute capability"
         " {call.capability[0]}.{call.capability[1]}, whose shared memory is too small",
         "use at most 192 channels a head, or 225 to 256 without dropout"),
    Rule(on("cuda", "flash", "cudnn"), lambda call: not call.unit_stride and call.head_dim > 1,
         "the last dimension of q, k or v is not contiguous", "call .contiguous() on it"),
    # It passes PyTorch's check but fails in the kernel, so PyTorch's default fails too.
    Rule(on("cuda", "efficient"),
         lambda call: call.mask is not None and call.mask_dtype not in ("bool", call.dtype),
         "the mask is {call.mask_dtype} and q is {call.dtype}, but the kernel reads only one dtype",
         "make the mask bool or {call.dtype}"),
    Rule(on("cuda", "efficient", "cudnn"), lambda call: call.mask is not None and not call.mask_unit_stride,
         "the last dimension of the mask is not contiguous", "call .contiguous() on it"),
    Rule(on("cuda", "efficient"), lambda call: not _aligned(call),
         "the head dimensions {call.head_dim} and {call.value_dim} are not multiples of 8 (of 4 in float32)",
         "pad them with zeros"),
    Rule(on("cuda", "efficient"), lambda call: not call.leads_equal,
         "batch sizes or heads differ, and up to torch 2.13 this kernel neither broadcasts nor groups heads:"
         " q {call.query}, k {call.key}, v {call.value}",
         "repeat k and v to q's batch and heads, or use flash with enable_gqa=True"),
    Rule(on("cuda", "cudnn"), lambda call: not (call.leads_equal or call.grouped),
         "batch sizes or heads differ, and up to torch 2.13 this kernel does not broadcast:"
         " q {call.query}, k {call.key}, v {call.value}",
         "expand k and v to q's batch; pass enable_gqa=True where their heads divide q's"),
    Rule(on("cuda", "cudnn"), lambda call: call.head_dim % 8 > 0 or call.value_dim % 8 > 0,
         "head dimensions {call.head_dim} and {call.value_dim} are not multiples of 8", "pad with zeros"),
    Rule(on("cuda", "cudnn"), lambda call: not _cudnn_takes(call),
         "head dimensions {call.head_dim} and {call.value_dim}: above 128, some versions of cuDNN refuse",
         "use at most 128 channels a head, or on compute capability 9 or 10 exactly 192 and 128"),
    Rule(on("cuda", "cudnn"), lambda call: call.dropout_p * 16 % 1 != 0,
         "dropout_p = {call.dropout_p} is not a multiple of 1/16, and torch 2.13 no longer rounds it",
         "use 0, 0.0625, 0.125, …"),
    Rule(on("cuda", "cudnn"), lambda call: call.deterministic,
         "deterministic algorithms are enabled",
         "use flash, efficient or math, or torch.use_deterministic_algorithms(False)"),
    Rule(on("cuda", "cudnn"),
         lambda call: call.source_length == 1 or (call.length == 1 and call.dropout_p > 0),
         "L = {call.length} and S = {call.source_length}: a single key, or a single query with dropout",
         "use flash or efficient"),
    Rule(on("cuda", "cudnn"), lambda call: call.four_dimensional and max(call.query[:2]) > 65_535,
         "more than 65,535 items or heads: {call.query}", "split the batch into smaller ones"),
)  # fmt: skip
"""Every reason why a kernel cannot run."""


def rules_of_contract(backend: str) -> tuple[Rule, ...]:
    """Every reason why a kernel outside of PyTorch's own choice cannot run: what `attention` passes on."""
    return (
        Rule(everywhere(backend), mask_and_causal,
             "flashmore supports either causal or a mask, not both", "combine both into one mask"),
        Rule(everywhere(backend), lambda call: not in_contract(call),
             "flashmore's attention is written for (B, H, T, D) with the same B everywhere, and heads of k"
             " and v that divide q's",
             "reshape q, k and v to 4-D, and repeat k and v to q's batch and heads"),
    )  # fmt: skip


CAUTIONS: tuple[Rule, ...] = (
    Rule(everywhere("manual", "math"), _large,
         "the matrix of weights is written to memory and takes 4 GiB or more",
         "use a fused kernel, or a smaller batch"),
    Rule(on("cpu", "flash"), _misread,
         "torch 2.13 silently misreads a float32 mask for float64 queries", "make the mask float64"),
    Rule(on("cpu", "sdpa"), lambda call: _misread(call) and can_run("flash", call),
         "PyTorch picks flash, which misreads a float32 mask for float64 queries", "make the mask float64"),
    Rule(on("cpu", "flash"), mask_and_causal,
         "attn_mask and is_causal=True both apply, though PyTorch documents an error, and math raises it",
         "combine both into one mask"),
    Rule(on("cpu", "sdpa"), lambda call: mask_and_causal(call) and can_run("flash", call),
         "attn_mask and is_causal=True both apply while PyTorch picks flash; where it cannot, math raises",
         "combine both into one mask"),
    Rule(on("cpu", *TOP_LEFT, "flash") + on("cuda", *TOP_LEFT, "efficient", "cudnn"),
         lambda call: call.causal and call.length != call.source_length,
         "is_causal=True is aligned top-left: of {call.source_length} keys, query t sees keys 0 to t",
         "for new queries after cached keys pass a mask, torch.nn.attention.bias.causal_lower_right(L, S)"),
    Rule(on("cuda", "cudnn"),
         lambda call: call.mask is not None and call.needs_grad and call.source_length % 128 == 64,
         "with a mask and {call.source_length} keys, NaN in the gradient of q is reported since torch 2.11"
         " (pytorch issue 196678)", "check your gradients, or use efficient"),
    Rule(on("cuda", "cudnn"), lambda call: call.mask is not None and call.mask_dtype == "float32",
         "a float32 mask is reported to be misread silently (pytorch pull request 191612)",
         "make the mask bool or {call.dtype}"),
)  # fmt: skip
"""Unexpected results of kernels that can run. Those for the CPU were observed with torch 2.13, and a test
compares all other results with float64. Those for CUDA come from the named issues and were not reproduced."""
