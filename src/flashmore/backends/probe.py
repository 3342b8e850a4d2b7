"""Runs a described call on tensors, with one backend forced or with PyTorch's own choice."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from flashmore.backends.contract import attention
from flashmore.errors import FlashmoreError
from flashmore.rules.call import AttentionCall, Shape
from flashmore.specs import backend_spec, backends

LARGEST_SCORES = 2**24
"""Most elements of a probe's (…, L, S) matrix: 64 MiB in float32."""
LARGEST_PRODUCT = 2**29
"""Most multiplications in a probe's q @ kᵀ: well below a second."""
LARGEST_INPUT = 2**24
"""Most elements of q, k and v together."""


def is_present(device: str) -> bool:
    """Whether the installed torch finds the device on this machine."""
    if device == "cuda":
        return torch.cuda.is_available()
    return device == "cpu" or torch.backends.mps.is_available()


def affordable(call: AttentionCall) -> AttentionCall | None:
    """The call, or a smaller one equivalent under every rule; None if that is too large as well."""
    if _is_small(call):
        return call
    smaller = _smaller(call)
    rules = (rule for spec in backends().values() for rule in spec.rules)
    here = [rule for rule in rules if any(device == call.device for device, _ in rule.kernels)]
    alike = all(rule.breaks(call) == rule.breaks(smaller) for rule in here)
    return smaller if alike and _is_small(smaller) else None


def failure_of(backend: str, call: AttentionCall) -> Exception | None:
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


def default_of(call: AttentionCall) -> tuple[str, str]:
    """Let PyTorch choose, and detect which kernel ran.

    Returns:
        The kernel, and the evidence: in training the output's backward node, else the operator that was
        called.

    Raises:
        RuntimeError, IndexError: PyTorch's choice cannot compute this call.
    """
    with _surroundings(call):
        if call.needs_grad:
            return _kernel_among(
                _nodes(_compute("sdpa", call).grad_fn), "no backward node is a fused kernel's"
            )
        with _Operators() as operators:
            _compute("sdpa", call)
        return _kernel_among(operators.names, "no operator is a fused kernel's")


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


def _kernel_among(names: list[str], else_math: str) -> tuple[str, str]:
    for name in names:
        for spec in backends().values():
            if spec.operator and spec.operator in name.lower().replace("_", ""):
                return spec.name, name
    return "math", else_math


def _nodes(node: Any) -> list[str]:
    """The names of an output's backward nodes: with padding, the kernel's is not the last one."""
    names, ahead, seen = [], [node], {node}
    while ahead:
        node = ahead.pop()
        names.append(node.name())
        nexts = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= nexts
        ahead.extend(nexts)
    return names


def _compute(backend: str, call: AttentionCall) -> Tensor:
    q, k, v = (_operand(shape, call) for shape in (call.query, call.key, call.value))
    mask = None if call.mask is None else _mask(call.mask, call)
    spec = backend_spec(backend)
    if spec.kernel and spec.sdp_backend is None:
        return attention(q, k, v, backend=backend, causal=call.causal, mask=mask, dropout_p=call.dropout_p)
    kernels = [getattr(SDPBackend, spec.sdp_backend)] if spec.sdp_backend else []
    with sdpa_kernel(kernels) if kernels else nullcontext():
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=call.dropout_p, is_causal=call.causal, enable_gqa=call.gqa
        )


def _operand(shape: Shape, call: AttentionCall) -> Tensor:
    made = _strided(shape, call.unit_stride, getattr(torch, call.dtype), call.device)
    return made.requires_grad_(call.needs_grad)


def _mask(shape: Shape, call: AttentionCall) -> Tensor:
    dtype = getattr(torch, call.mask_dtype)
    made = _strided(shape, call.mask_unit_stride, dtype, call.device)
    # A bool mask of True and an additive mask of 0 mask nothing.
    return made.fill_(1 if dtype == torch.bool else 0).requires_grad_(call.mask_needs_grad)


def _strided(shape: Shape, unit_stride: bool, dtype: torch.dtype, device: str) -> Tensor:
    """Zeros with a last stride of 1, or of 2."""
    if not shape:
        return torch.zeros((), dtype=dtype, device=device)
    # Always allocate twice the size: torch 2.13's CPU kernel reads a float32 mask as if it were float64.
    room = torch.zeros(2 * math.prod(shape), dtype=dtype, device=device)
    return room[: math.prod(shape)].view(shape) if unit_stride else room.view(*shape, 2)[..., 0]


@contextmanager
def _surroundings(call: AttentionCall) -> Iterator[None]:
    """Set grad mode and determinism as described; restore generator state and settings afterwards."""
    was, only_warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    devices = [torch.cuda.current_device()] if call.device == "cuda" else []
    with torch.random.fork_rng(devices), torch.set_grad_enabled(call.needs_grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch reports reasons as warnings; ours are complete
        torch.use_deterministic_algorithms(call.deterministic)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was, warn_only=only_warned)


def _is_small(call: AttentionCall) -> bool:
    leads = (call.query[-3::-1], call.key[-3::-1], call.value[-3::-1])  # from the last one on
    lead = math.prod(max(sizes) for sizes in zip_longest(*leads, fillvalue=1))
    scores = lead * call.length * call.source_length
    inputs = sum(math.prod(shape) for shape in (call.query, call.key, call.value))
    return (
        scores <= LARGEST_SCORES
        and scores * max(call.head_dim, call.value_dim) <= LARGEST_PRODUCT
        and inputs <= LARGEST_INPUT
    )


def _smaller(call: AttentionCall) -> AttentionCall:
    """The smallest call with the same relations between sizes."""
    length, source = call.length, call.source_length
    sizes = {length: min(length, 64 if length >= source else 32)}
    sizes[source] = min(source, 64 if source >= length else 32)

    def small(shape: Shape, lead: Shape) -> Shape:
        return (*lead, sizes[shape[-2]], shape[-1])

    query, key, value, mask = _smaller_leads(call)
    return replace(
        call,
        query=small(call.query, query),
        key=small(call.key, key),
        value=small(call.value, value),
        mask=None if call.mask is None else (*mask, *(min(n, sizes.get(n, 1)) for n in call.mask[-2:])),
    )


def _smaller_leads(call: AttentionCall) -> tuple[Shape, ...]:
    """Leading sizes of q, k, v and the mask: 1 if all agree, otherwise their ratios."""
    shapes = [call.query[:-2], call.key[:-2], call.value[:-2], () if call.mask is None else call.mask[:-2]]
    small: list[list[int]] = [[] for _ in shapes]
    for axis in range(1, max(map(len, shapes)) + 1):
        there = [shape[-axis] for shape in shapes[:3] if len(shape) >= axis]
        common = math.gcd(*there) if len(set(there)) == 1 or (call.gqa and axis == 1) else 1
        for made, shape in zip(small, shapes, strict=True):
            if len(shape) >= axis:
                made.insert(0, max(1, shape[-axis] // common) if common > 1 else min(shape[-axis], 2))
    return tuple(tuple(made) for made in small)
