"""Peak memory of one piece of work, beyond what was there before it began; never timed."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Run `work` once and find the most memory that torch had allocated for it at any moment.

    On CUDA this is `torch.cuda.max_memory_allocated` less what was allocated before. A CPU keeps no such
    count, so a profiler writes down every allocation, and the peak is their highest running sum.

    Args:
        work: what is measured. Let it run before, so that what is made only once (cuDNN's plans, the
            optimizer's moments) is not counted. It should free nothing that stood before: the profiler
            does not see that, CUDA's count does.
        device: where `work` computes.

    Returns:
        Bytes; None on a device that keeps no count (MPS).

    https://docs.pytorch.org/docs/stable/generated/torch.cuda.max_memory_allocated.html
    https://docs.pytorch.org/docs/stable/profiler.html
    """
    if device.type == "cuda":
        return _peak_on_cuda(work, device)
    if device.type == "cpu":
        return highest_running_sum(_changes_on_cpu(work))
    return None


def highest_running_sum(changes: Iterable[int]) -> int:
    """The highest sum reached by adding up changes in their order; 0 where none lifts it above the start."""
    highest = now = 0
    for change in changes:
        now += change
        highest = max(highest, now)
    return highest


def _peak_on_cuda(work: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _changes_on_cpu(work: Callable[[], object]) -> list[int]:
    """Every allocation (above 0) and release (below 0) of CPU memory in the order of time, in bytes."""
    # acc_events: without it, torch 2.11 warns that events of several cycles would be lost; there is one.
    cpu = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    with _silent_profiler(), cpu as profiled:
        work()
    # FunctionEvents add up what an operator allocated within itself; the single events are only here.
    kineto = profiled.profiler.kineto_results
    changes = [
        (event.start_ns(), event.nbytes())
        for event in kineto.events()
        if event.name() == "[memory]" and event.device_type().name == "CPU"
    ]
    changes.sort(key=lambda change: change[0])
    return [size for _, size in changes]


@contextmanager
def _silent_profiler() -> Iterator[None]:
    """Keep what the profiler's C++ code says of itself off the terminal; exceptions go their way."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
