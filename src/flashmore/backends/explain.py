"""Which backends can compute an attention call, every reason against the others, and which one runs.

If the device is present, every backend that need not be compiled first is forced once, and the outcome
overrides the rules, which give the reasons: a rule that is wrong for the installed torch is reported.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from flashmore.backends.contract import attention
from flashmore.errors import FlashmoreError
from flashmore.rules import AttentionCall, Shape
from flashmore.specs import BackendSpec, backend_spec, backends

LARGEST_SCORES, LARGEST_INPUT = 2**24, 2**24
"""Most elements of the (…, L, S) matrix of a call that is run, and of its q, k and v together."""
LARGEST_PRODUCT = 2**29
"""Most multiplications in its q @ kᵀ: well below a second."""


@dataclass(frozen=True)
class Answer:
    """The explanation for one backend."""

    name: str
    usable: bool
    reasons: tuple[str, ...]
    """Every reason against it, each with what to change; empty if it is usable."""
    cautions: tuple[str, ...]
    """Caveats of using it."""
    about: str
    documentation: str
    """Its address; empty for none."""


@dataclass(frozen=True)
class Explanation:
    """Which backends can compute a call, and which one PyTorch picks."""

    call: AttentionCall
    device_present: bool
    backends: tuple[Answer, ...]
    default: str | None
    """The kernel that PyTorch chose; None if nothing could be run."""
    how: str
    """How the default was determined, or why there is none."""
    ran: AttentionCall | None
    """The call that was run: the original, or a smaller one equivalent under every rule."""
    line: str | None
    """Two lines of Python that force a kernel: PyTorch's choice, or the first that can run."""
    torch: str
    """The installed torch release."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def explain(call: AttentionCall) -> Explanation:
    """Explain for every backend whether it can compute a call, with all reasons against it.

    If the device is present, every backend that need not be compiled first is run once, forward and, if
    `call.needs_grad`, backward, and PyTorch's default is read from what ran; a call that is too large is
    replaced by a smaller one equivalent under every rule. Otherwise only the rules are used.

    Args:
        call: as `flashmore.describe_call` builds it from tensors. Its compute capability is only used if no
            GPU is present.
    """
    present = is_present(call.device)
    if present and call.device == "cuda":
        call = replace(call, capability=torch.cuda.get_device_capability())
    ran = _affordable(call) if present else None
    answers = tuple(_answer(spec, call, ran) for spec in backends().values())
    default, how = _default(call, present, ran)
    return Explanation(call, present, answers, default, how, ran, _line(default, answers), torch.__version__)


def is_present(device: str) -> bool:
    """Whether the installed torch finds the device on this machine."""
    if device == "cuda":
        return torch.cuda.is_available()
    return device == "cpu" or torch.backends.mps.is_available()


def _answer(spec: BackendSpec, call: AttentionCall, ran: AttentionCall | None) -> Answer:
    reasons = tuple(map(str, spec.reasons_against(call)))
    cautions = tuple(map(str, spec.cautions_about(call)))
    about = spec.on_device.get(call.device, spec.summary)
    if ran is not None and not spec.compiled:
        failure = _failure_of(spec.name, ran)
        if failure is None and reasons:
            wrong = (f"it ran, although the rules for torch 2.11 to 2.13 say: {why}" for why in reasons)
            reasons, cautions = (), (*wrong, *cautions)
        elif failure is not None and not reasons:
            refused = f"torch {torch.__version__} rejects it, for a reason that no rule covers"
            reasons = (f"{refused}: {_first(failure)}",)
    return Answer(spec.name, not reasons, reasons, () if reasons else cautions, about, spec.documentation)


def _default(call: AttentionCall, present: bool, ran: AttentionCall | None) -> tuple[str | None, str]:
    """The kernel that PyTorch chooses and the evidence, or None and why it is not known."""
    if not present:
        assumed = ".".join(map(str, call.capability))
        assuming = f"; the rules assume compute capability {assumed}" if call.device == "cuda" else ""
        return None, f"unknown: torch {torch.__version__} sees no {call.device} device here{assuming}"
    if ran is None:
        return None, "unknown: the call is too large to run, and no smaller one follows the same rules"
    try:
        with _surroundings(ran), _Operators() as operators:
            _compute("sdpa", ran)
    except (RuntimeError, IndexError) as error:
        against = backend_spec("sdpa").reasons_against(ran)
        return None, "none: the call fails: " + (str(against[0]) if against else _first(error))
    smaller = "" if ran == call else f" a smaller call that follows the same rules, q {ran.query}"
    how = f"found by running{smaller or ' it'}: "
    for operator in operators.names:
        for spec in backends().values():
            if spec.operator and spec.operator in operator.lower().replace("_", ""):
                return spec.name, how + operator
    return "math", f"{how}no fused kernel was called"


def _line(default: str | None, answers: tuple[Answer, ...]) -> str | None:
    """Force the kernel that PyTorch chose; if unknown, a fused one with the fewest cautions."""
    ranks = {}
    for answer in answers:
        spec = backend_spec(answer.name)
        if answer.usable and spec.sdp_backend:
            ranks[spec.sdp_backend] = (answer.name != default, len(answer.cautions), not spec.fused)
    if not ranks:
        return None
    return (
        "from torch.nn.attention import SDPBackend, sdpa_kernel\n"
        f"with sdpa_kernel([SDPBackend.{min(ranks, key=ranks.__getitem__)}]):\n"
        "    ..."
    )


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _failure_of(backend: str, call: AttentionCall) -> Exception | None:
    """Force one backend, forward and, in training, backward; None if it ran, else its exception."""
    try:
        with _surroundings(call):
            out = _compute(backend, call)
            if call.needs_grad:
                out.sum().backward()  # type: ignore[no-untyped-call]
            if call.device == "cuda":
                torch.cuda.synchronize()
    except (RuntimeError, IndexError, FlashmoreError) as error:
        return error
    return None


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the name of every operator call."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(  # type: ignore[no-untyped-def]
        self, func, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def _compute(backend: str, call: AttentionCall) -> Tensor:
    dtype = getattr(torch, call.dtype)
    q, k, v = (
        _zeros(shape, call.unit_stride, dtype, call.device).requires_grad_(call.needs_grad)
        for shape in (call.query, call.key, call.value)
    )
    mask = None
    if call.mask is not None:
        mask_dtype = getattr(torch, call.mask_dtype)
        mask = _zeros(call.mask, call.mask_unit_stride, mask_dtype, call.device)
        # A bool mask of True and an additive mask of 0 mask nothing.
        mask.fill_(mask_dtype == torch.bool).requires_grad_(call.mask_needs_grad)
    spec = backend_spec(backend)
    if spec.kernel and spec.sdp_backend is None:
        return attention(q, k, v, backend=backend, causal=call.causal, mask=mask, dropout_p=call.dropout_p)
    with sdpa_kernel([getattr(SDPBackend, spec.sdp_backend)]) if spec.sdp_backend else nullcontext():
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=call.dropout_p, is_causal=call.causal, enable_gqa=call.gqa
        )


def _zeros(shape: Shape, unit_stride: bool, dtype: torch.dtype, device: str) -> Tensor:
    """Zeros with a last stride of 1, or of 2."""
    if not shape:
        return torch.zeros((), dtype=dtype, device=device)
    # Always allocate twice the size: torch 2.13's CPU kernel reads a float32 mask as if it were float64.
    room = torch.zeros(2 * math.prod(shape), dtype=dtype, device=device)
    return room[: math.prod(shape)].view(shape) if unit_stride else room.view(*shape, 2)[..., 0]


@contextmanager
def _surroundings(call: AttentionCall) -> Iterator[None]:
    """Set grad mode and determinism as described; restore generator state and settings afterwards."""
    was = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    devices = [torch.cuda.current_device()] if call.device == "cuda" else []
    with torch.random.fork_rng(devices), torch.set_grad_enabled(call.needs_grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch reports reasons as warnings; ours are complete
        torch.use_deterministic_algorithms(call.deterministic)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was, warn_only=only_warned)


def _affordable(call: AttentionCall) -> AttentionCall | None:
    """The call, or a smaller one equivalent under every rule; None if that is too large as well."""
    if _is_small(call):
        return call
    smaller = _smaller(call)
    rules = (rule for spec in backends().values() for rule in spec.every_rule)
    here = [rule for rule in rules if any(device == call.device for device, _ in rule.kernels)]
    alike = all(rule.breaks(call) == rule.breaks(smaller) for rule in here)
    return smaller if alike and _is_small(smaller) else None


def _is_small(call: AttentionCall) -> bool:
    leads = (call.query[-3::-1], call.key[-3::-1], call.value[-3::-1])  # from the last one on
    lead = math.prod(max(sizes) for sizes in zip_longest(*leads, fillvalue=1))
    scores = lead * call.length * call.source_length
    return (
        scores <= LARGEST_SCORES
        and scores * max(call.head_dim, call.value_dim) <= LARGEST_PRODUCT
        and sum(map(math.prod, (call.query, call.key, call.value))) <= LARGEST_INPUT
    )


def _smaller(call: AttentionCall) -> AttentionCall:
    """The smallest call with the same relations between sizes."""
    length, source = call.length, call.source_length
    sizes = {length: min(length, 64 if length >= source else 32)}
    sizes[source] = min(source, 64 if source >= length else 32)
    # Of the leading sizes, from the last one on: 1 if all agree, otherwise their ratios remain.
    divisors: list[int] = []
    for lead in zip_longest(*(shape[-3::-1] for shape in (call.query, call.key, call.value))):
        there = [size for size in lead if size is not None]
        alike = len(set(there)) == 1 or (call.gqa and not divisors)
        divisors.append(math.gcd(*there) if alike else 1)

    def small(shape: Shape, *rest: int) -> Shape:
        pairs = zip(shape[-3::-1], divisors, strict=False)
        lead = [max(1, size // by) if by > 1 else min(size, 2) for size, by in pairs]
        return (*reversed(lead), *rest)

    mask = call.mask
    if mask is not None:
        mask = small(mask, *(min(size, sizes.get(size, 1)) for size in mask[-2:]))
    return replace(
        call,
        query=small(call.query, sizes[length], call.head_dim),
        key=small(call.key, sizes[source], call.head_dim),
        value=small(call.value, sizes[source], call.value_dim),
        mask=mask,
    )
