"""How much memory is free, and how much time is left: what would not fit is left out before it runs."""

import math
import os
from collections.abc import Iterable
from pathlib import Path

import torch

from flashmore.benchmark.attention.plan import Shape
from flashmore.measuring.environment import memory_bytes
from flashmore.measuring.measure import Clock

SHARE_OF_FREE = 0.8
"""Of the free memory; the rest is for everybody else on the machine."""
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now without hurting others.

    On CUDA what the driver calls free; on a CPU what Linux calls available, or less where a control group
    sets a limit; half of the main memory where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [free for free in (_available(), left_in_group(CGROUP)) if free is not None]
    return min(known) if known else (memory_bytes() or 2**32) // 2


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def left_in_group(group: Path) -> int | None:
    """What the control group (version 2) of this container still allows; None without a limit."""
    try:
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        return max(0, limit - int((group / "memory.current").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no such file, or "max"
        return None


class TimeBudget:
    """Seconds for a list of shapes: each gets a share, and what it leaves over goes to those after it."""

    def __init__(self, seconds: float, shapes: Iterable[Shape], clock: Clock) -> None:
        self.clock = clock
        self.end = clock() + seconds
        self._ahead = [_weight(shape) for shape in shapes]

    def left(self) -> float:
        """Seconds until the budget is spent; below 0 where it is overspent."""
        return self.end - self.clock()

    def next_share(self) -> float:
        """Seconds for the next shape of the list."""
        share = self.left() * self._ahead[0] / sum(self._ahead)
        del self._ahead[0]
        return max(0.0, share)


def _weight(shape: Shape) -> float:
    # Work grows with T². Long shapes would take everything, short ones want repetitions: between the two.
    return shape.T * math.sqrt(shape.pairs * shape.D)
