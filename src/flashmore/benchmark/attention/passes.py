"""Separate timing of a backend's forward and backward passes, on tensors shared by all backends.

The overhead of `sdpa_kernel` (about 10 µs per call) is excluded: it is entered before the clock starts.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashmore.backends.contract import attention, load_backend
from flashmore.backends.sdpa import chosen_by_pytorch
from flashmore.benchmark.attention.plan import Pass, Shape
from flashmore.measuring.accuracy import Judgement
from flashmore.measuring.measure import Clock
from flashmore.measuring.memory import peak_bytes
from flashmore.specs import backend_spec

Result = TypeVar("Result")
FLUSHED_BYTES = 256 * 2**20
"""Bytes written before each sample on CUDA to flush the L2 cache, as in triton.testing.do_bench."""


class Inputs(NamedTuple):
    """q, k and v, (B, H, T, D) each and contiguous, and the gradient with respect to the output."""

    q: Tensor
    k: Tensor
    v: Tensor
    cotangent: Tensor

    @classmethod
    def random(cls, shape: Shape, device: torch.device) -> "Inputs":
        """Standard normal values, the same for the same shape."""
        generator = torch.Generator().manual_seed(0)
        size = (shape.B, shape.H, shape.T, shape.D)
        dtype = getattr(torch, shape.dtype)
        q, k, v, cotangent = (torch.randn(size, generator=generator).to(device, dtype) for _ in range(4))
        return cls(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), cotangent)


class Stopwatch:
    """Wall clock with synchronisation."""

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
        self.wait = wait.get(device.type, lambda: None)

    def time(self, work: Callable[[], Result]) -> tuple[float, Result]:
        """Run `work` to its end; milliseconds, and what it returned."""
        self.wait()
        began = self.clock()
        result = work()
        self.wait()
        return 1000 * (self.clock() - began), result


class EventStopwatch(Stopwatch):
    """CUDA events around the work only, with the L2 cache flushed before."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.flushed = torch.empty(FLUSHED_BYTES // 4, dtype=torch.int32, device=device)

    def time(self, work: Callable[[], Result]) -> tuple[float, Result]:
        """Run `work` to its end; milliseconds on the GPU, and what it returned."""
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        # This keeps the GPU busy while the CPU prepares the work, which hides the launch overhead.
        self.flushed.zero_()
        start.record()
        result = work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end), result


class Passes:
    """One backend on one shape; every call runs both passes once and records their times."""

    def __init__(self, backend: str, causal: bool, inputs: Inputs, stopwatch: Stopwatch) -> None:
        self.backend = backend
        self.causal = causal
        self.inputs = inputs
        self.stopwatch = stopwatch
        self.judgements: tuple[Judgement, ...] = ()
        self.cold_ms: dict[Pass, float] = {}
        self.peaks: dict[Pass, int | None] = {}
        self.blocks: list[list[tuple[float, float]]] = []
        self._open: list[tuple[float, float]] = []

    def __call__(self) -> None:
        """One sample of both passes."""
        with self._this_kernel_only():
            forward_ms, out = self.stopwatch.time(self._forward)
            backward_ms, _ = self.stopwatch.time(lambda: self._backward(out))
        self._open.append((forward_ms, backward_ms))

    def close_block(self) -> None:
        """Group all samples since the last block into a block."""
        self.blocks.append(self._open)
        self._open = []

    def forget(self) -> None:
        """Drop all samples so far as warm-up."""
        self.blocks, self._open = [], []

    def samples_ms(self, which: Pass) -> list[list[float]]:
        """The samples of a pass by block, rounded to nanoseconds."""

        def pick(forward: float, backward: float) -> float:
            return {"forward": forward, "backward": backward, "both": forward + backward}[which]

        return [[round(pick(*sample), 6) for sample in block] for block in self.blocks]

    def first_call_ms(self, stopwatch: Stopwatch) -> dict[Pass, float]:
        """Time the very first call by the wall clock: most of it is planning and loading on the CPU.

        Raises:
            BackendUnavailable: the backend cannot run on these inputs; with every reason.
        """
        q, k, v, _ = self.inputs
        forward_ms, out = stopwatch.time(lambda: attention(q, k, v, backend=self.backend, causal=self.causal))
        backward_ms, _ = stopwatch.time(lambda: self._backward(out))
        return {"forward": forward_ms, "backward": backward_ms, "both": forward_ms + backward_ms}

    def peak_bytes(self) -> dict[Pass, int | None]:
        """Peak memory of each pass beyond earlier allocations; untimed. None if torch does not report it."""
        device = self.inputs.q.device
        kept: list[Tensor] = []
        with self._this_kernel_only():
            forward = peak_bytes(lambda: kept.append(self._forward()), device)
            backward = peak_bytes(lambda: self._backward(kept.pop()), device)
            both = peak_bytes(lambda: self._backward(self._forward()), device)
        return {"forward": forward, "backward": backward, "both": both}

    def _this_kernel_only(self) -> AbstractContextManager[None]:
        kernel = backend_spec(self.backend).sdp_backend
        return sdpa_kernel([getattr(SDPBackend, kernel)]) if kernel else nullcontext()

    def _forward(self) -> Tensor:
        forced = backend_spec(self.backend).sdp_backend is not None
        compute = chosen_by_pytorch if forced else load_backend(self.backend)
        q, k, v, _ = self.inputs
        return compute(q, k, v, mask=None, causal=self.causal, scale=None, dropout_p=0.0)

    def _backward(self, out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, self.inputs[:3], self.inputs.cotangent)
