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

from flashmore.backends.contract import attention, load_backend, random_inputs
from flashmore.backends.sdpa import chosen_by_pytorch
from flashmore.call import CallOptions, Pass
from flashmore.measuring.accuracy import Judgement
from flashmore.measuring.measure import Clock
from flashmore.measuring.memory import peak_bytes
from flashmore.specs import backend_spec

Result = TypeVar("Result")
FLUSHED_BYTES = 256 * 2**20
"""Bytes written before each sample on CUDA to flush the L2 cache, as in triton.testing.do_bench."""


class Inputs(NamedTuple):
    """q, k and v, contiguous, the mask, and the gradient with respect to the output."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    cotangent: Tensor

    @classmethod
    def random(cls, one: CallOptions, device: torch.device) -> "Inputs":
        """Standard normal values, the same for the same call."""
        q, k, v, mask = random_inputs(one.call(device.type), device)
        size = (one.batch_size, one.n_head, one.length, one.values)
        cotangent = torch.randn(size, generator=torch.Generator().manual_seed(1))
        return cls(q, k, v, mask, cotangent.to(device, q.dtype))


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
    """One backend on one attention call; each sample runs the forward and, in training, the backward pass."""

    def __init__(self, backend: str, one: CallOptions, inputs: Inputs, stopwatch: Stopwatch) -> None:
        self.backend = backend
        self.one = one
        self.inputs = inputs
        self.stopwatch = stopwatch
        self.trains = one.passes != "forward"
        self.judgements: tuple[Judgement, ...] = ()
        self.cold_ms: dict[Pass, float] = {}
        self.peaks: dict[Pass, int | None] = {}
        self.blocks: list[list[tuple[float, float]]] = []
        self._open: list[tuple[float, float]] = []

    def __call__(self) -> None:
        """One sample of both passes, or of the forward pass alone."""
        with self._this_kernel_only():
            self._open.append(self._timed(self._forward, self.stopwatch))

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
        q, k, v, mask, _ = self.inputs

        def forward() -> Tensor:
            causal, dropout_p = self.one.is_causal, self.one.dropout
            with torch.set_grad_enabled(self.trains):
                return attention(q, k, v, backend=self.backend, causal=causal, mask=mask, dropout_p=dropout_p)

        forward_ms, backward_ms = self._timed(forward, stopwatch)
        return {"forward": forward_ms, "backward": backward_ms, "both": forward_ms + backward_ms}

    def peak_bytes(self) -> dict[Pass, int | None]:
        """Peak memory of each pass beyond earlier allocations; untimed. None if torch does not report it."""
        device = self.inputs.q.device
        kept: list[Tensor] = []
        with self._this_kernel_only():
            forward = peak_bytes(lambda: kept.append(self._forward()), device)
            if not self.trains:
                return {"forward": forward}
            backward = peak_bytes(lambda: self._backward(kept.pop()), device)
            both = peak_bytes(lambda: self._backward(self._forward()), device)
        return {"forward": forward, "backward": backward, "both": both}

    def _this_kernel_only(self) -> AbstractContextManager[None]:
        kernel = backend_spec(self.backend).sdp_backend
        return sdpa_kernel([getattr(SDPBackend, kernel)]) if kernel else nullcontext()

    def _timed(self, forward: Callable[[], Tensor], stopwatch: Stopwatch) -> tuple[float, float]:
        forward_ms, out = stopwatch.time(forward)
        backward_ms = stopwatch.time(lambda: self._backward(out))[0] if self.trains else 0.0
        return forward_ms, backward_ms

    def _forward(self) -> Tensor:
        forced = backend_spec(self.backend).sdp_backend is not None
        compute = chosen_by_pytorch if forced else load_backend(self.backend)
        q, k, v, mask, _ = self.inputs
        causal, dropout_p = self.one.is_causal, self.one.dropout
        with torch.set_grad_enabled(self.trains):
            return compute(q, k, v, mask=mask, causal=causal, scale=None, dropout_p=dropout_p)

    def _backward(self, out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, self.inputs[:3], self.inputs.cotangent)
