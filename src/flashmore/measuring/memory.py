"""Peak memory of an operation, beyond what was allocated before; untimed."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from operator import itemgetter

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Run `work` once and measure the peak of torch's allocations for it.

    On CUDA this is `torch.cuda.max_memory_allocated` minus what was allocated before. The CPU has no such
    statistic, so a profiler records every allocation, and the peak is their highest running sum.

    Args:
        work: the function to measure. Run it once before, so that one-time allocations (cuDNN's plans, the
            optimizer's moments) do not count. It should free nothing allocated before: CUDA's statistic
            includes that, the profiler does not.

    Returns:
        Bytes; None on a device without this statistic (MPS).

    https://docs.pytorch.org/docs/stable/generated/torch.cuda.max_memory_allocated.html
    https://docs.pytorch.org/docs/stable/profiler.html
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type == "cpu":
        return max(accumulate(_changes_on_cpu(work), initial=0))
    return None


def _changes_on_cpu(work: Callable[[], object]) -> list[int]:
    """Every allocation (positive) and release (negative) of CPU memory in bytes, in order of time."""
    # acc_events: without it, torch 2.11 warns that events of several cycles would be lost; there is one.
    cpu = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    with _silent_profiler(), cpu as profiled:
        work()
    # FunctionEvents add up what an operator allocated within itself; the single events are only here.
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiled.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type().name == "CPU"
    ]
    return [size for _, size in sorted(changes, key=itemgetter(0))]


@contextmanager
def _silent_profiler() -> Iterator[None]:
    """Suppress the terminal output of the profiler's C++ code; exceptions are not affected."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
