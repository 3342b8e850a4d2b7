"""What really runs, seen without any of the code that explains it, and the calls to try it on."""

import functools
import itertools
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashmore.backends.contract import attention
from flashmore.errors import FlashmoreError
from flashmore.rules import DTYPES, AttentionCall
from flashmore.specs import backend_spec

KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
PROFILED = {
    "aten::_scaled_dot_product_attention_math": "math",
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cudnn",
}


def tried(backend: str, call: Any) -> bool:
    """Whether a call is tried: compiling takes seconds, but training on the CPU is refused at once."""
    return not backend_spec(backend).compiled or (call.needs_grad and call.device == "cpu")


class Reality:
    """Runs what a description says, on random numbers. `call` has the fields of an AttentionCall."""

    @functools.cache  # noqa: B019 (one object a session)
    def runs(self, backend: str, call: Any) -> bool:
        """Force a backend, forward and in training backward."""
        return self._survives(backend, call, self.tensors(call))

    def chosen(self, call: Any) -> str | None:
        """The kernel that the profiler saw when PyTorch chose; None where the call failed."""
        tensors = self.tensors(call)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True
        ) as profile:
            survived = self._survives("sdpa", call, tensors)
        seen = {PROFILED[event.name] for event in profile.events() if event.name in PROFILED}
        if not survived:
            return None
        assert len(seen) == 1, seen
        return seen.pop()

    tried = staticmethod(tried)

    def compute(self, backend: str, call: Any, tensors: tuple[Tensor, ...]) -> Tensor:
        q, k, v, *masks = tensors
        mask = masks[0] if masks else None
        with torch.set_grad_enabled(call.needs_grad):
            if backend in ("manual", "flex", "varlen"):
                return attention(
                    q, k, v, backend=backend, mask=mask, causal=call.causal, dropout_p=call.dropout_p
                )
            with sdpa_kernel(KERNELS[backend]) if backend in KERNELS else nullcontext():
                return F.scaled_dot_product_attention(
                    q, k, v, mask, call.dropout_p, call.causal, enable_gqa=call.gqa
                )

    def tensors(self, call: Any, seed: int = 0) -> tuple[Tensor, ...]:
        """q, k, v and the mask if there is one; key 0 is visible to all."""
        random = torch.Generator().manual_seed(seed)

        def make(shape: tuple[int, ...], dtype: str, unit: bool, grad: bool) -> Tensor:
            numbers = torch.randn(shape, generator=random)
            if dtype == "bool":
                first_key = torch.arange(shape[-1]) == 0 if shape else torch.tensor(True)
                numbers = (numbers > -0.8) | first_key
            made = numbers.to(call.device, getattr(torch, dtype))
            if not unit and shape:
                made = torch.stack([made, made], dim=-1)[..., 0]
            return made.requires_grad_(grad)

        operands = [
            make(shape, call.dtype, call.unit_stride, call.needs_grad)
            for shape in (call.query, call.key, call.value)
        ]
        if call.mask is not None:
            operands.append(make(call.mask, call.mask_dtype, call.mask_unit_stride, call.mask_needs_grad))
        return tuple(operands)

    def _survives(self, backend: str, call: Any, tensors: tuple[Tensor, ...]) -> bool:
        try:
            torch.use_deterministic_algorithms(call.deterministic)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # CUDA warns with the reason before it raises
                out = self.compute(backend, call, tensors)
                if call.needs_grad:
                    out.sum().backward()  # type: ignore[no-untyped-call]
                if call.device == "cuda":
                    torch.cuda.synchronize()
        except (RuntimeError, IndexError, FlashmoreError):
            return False
        finally:
            torch.use_deterministic_algorithms(False)
        return True


def product(device: str) -> list[AttentionCall]:
    """Dtype × D × shape × mask × causal × dropout × training, on one device."""
    calls = []
    for dtype, D in itertools.product(DTYPES, (8, 20)):
        square = AttentionCall((2, 4, 16, D), (2, 4, 16, D), (2, 4, 16, D), dtype=dtype, device=device)
        shapes = (
            square,
            replace(square, query=(2, 4, 5, D)),
            replace(square, key=(2, 2, 16, D), value=(2, 2, 16, D), gqa=True),
            replace(square, key=(1, 4, 16, D), value=(1, 4, 16, D)),
            replace(square, value=(2, 4, 16, 2 * D)),
            replace(square, query=(4, 16, D), key=(4, 16, D), value=(4, 16, D)),
        )
        for base, causal, dropout, train in itertools.product(
            shapes, (False, True), (0.0, 0.25), (False, True)
        ):
            call = replace(base, causal=causal, dropout_p=dropout, needs_grad=train)
            L, S = call.length, call.source_length
            calls += [
                call,
                replace(call, mask=(L, S)),
                replace(call, mask=(L, 1), mask_dtype=dtype),
                replace(call, mask=(4, 1, S)),
                replace(call, mask=(1, S), mask_dtype="float32", mask_needs_grad=True),
                replace(call, mask=(S,)),
            ]
            if call.four_dimensional:
                calls.append(replace(call, mask=(2, 1, L, S), mask_dtype=dtype))
    return calls


def specials(device: str) -> list[AttentionCall]:
    """One property at a time, on one device, training and not."""
    s = (2, 4, 16, 8)
    square = AttentionCall(s, s, s, device=device)
    double = replace(square, dtype="float64")
    changed = [
        *(replace(square, unit_stride=False, dtype=dtype) for dtype in DTYPES),
        *(replace(square, deterministic=True, gqa=gqa) for gqa in (False, True) if device == "cpu"),
        *(replace(square, mask=(16, 16), mask_dtype=dtype) for dtype in (*DTYPES, "int64", "uint8")),
        *(replace(square, mask=(16, 16), mask_dtype=dtype, dtype="bfloat16") for dtype in DTYPES),
        *(replace(double, mask=mask, mask_dtype="float32") for mask in ((16, 16), (1, 16), (2, 4, 16, 1))),
        *(replace(square, mask=(16, 16), mask_unit_stride=False, mask_dtype=d) for d in ("bool", "float32")),
        *(replace(square, mask=mask) for mask in ((), (1,), (1, 1), (2, 1, 1, 16), (1, 4, 16, 1))),
        *(replace(square, dropout_p=p) for p in (0.0625, 0.1, 1.0)),
        replace(square, key=(2, 2, 16, 8), gqa=True),
        replace(square, key=(2, 2, 16, 8), value=(2, 1, 16, 8), gqa=True),
        replace(square, key=(1, 2, 16, 8), value=(1, 2, 16, 8), gqa=True),
        replace(square, key=(2, 1, 16, 8), value=(2, 1, 16, 8)),
        replace(square, key=(4, 16, 8), value=(4, 16, 8)),
        replace(square, key=(4, 16, 8), value=(4, 16, 8), mask=(16,)),
        *(AttentionCall((2, 2, 1, D), (2, 2, 9, D), (2, 2, 9, D), device=device) for D in (1, 2, 3, 64)),
        *(AttentionCall((2, 2, L, 8), (2, 2, 1, 8), (2, 2, 1, 8), device=device) for L in (1, 9)),
        *(AttentionCall((*b, 9, 8), (*b, 9, 8), (*b, 9, 8), device=device) for b in ((), (3,), (1, 2, 3))),
        AttentionCall((2, 2, 3, 9, 8), (2, 2, 1, 9, 8), (2, 2, 1, 9, 8), gqa=True, device=device),
        AttentionCall((1, 1, 130, 256), (1, 1, 130, 256), (1, 1, 130, 256), dtype="float16", device=device),
    ]
    varied = [replace(call, causal=causal) for call in changed for causal in (False, True)]
    return [replace(call, needs_grad=train) for call in varied for train in (False, True)]


@pytest.fixture(scope="session")
def reality() -> Reality:
    return Reality()


@pytest.fixture(scope="session")
def product_of() -> Callable[[str], list[AttentionCall]]:
    return functools.cache(product)


@pytest.fixture(scope="session")
def specials_of() -> Callable[[str], list[AttentionCall]]:
    return functools.cache(specials)
