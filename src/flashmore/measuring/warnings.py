"""Warnings about a measurement, with advice: a closed list, derived from the samples."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Literal, TypedDict

import numpy as np
import numpy.typing as npt

from flashmore.measuring.environment import busy_cpu_seconds
from flashmore.measuring.statistics import Blocks

Code = Literal["too few samples", "noisy machine", "thermal drift", "other load", "battery"]
Medians = Mapping[str, npt.NDArray[np.float64]]
"""The median of each block, by variant."""

FEWEST_BLOCKS = 20
NOISE = 0.05
"""Relative standard deviation of neighbouring blocks: 30 pairs of such blocks give an interval of ±3 %."""
DRIFT = 0.05
"""How much slower the last third of the blocks is than the first, in every variant."""
SPIKE = 2.0
"""A sample this many times its block's median counts as interrupted."""
SPIKES = 0.02
"""Allowed share of interrupted samples."""
OTHERS = 0.1
"""CPUs that other processes may keep busy when this one uses all of them."""
ADVICE: dict[Code, str] = {
    "too few samples": f"do not interrupt it, and use at least {FEWEST_BLOCKS} blocks",
    "noisy machine": "close other programs, fix the clock rate, plug in the charger, or measure more blocks",
    "thermal drift": "let the machine cool down and measure again; the ratios are still valid, because only "
    "neighbouring blocks are compared",
    "other load": "stop other processes (see top), or leave CPUs for them with --threads",
    "battery": "plug in the charger: many machines are slower on battery power",
}
DEVIATIONS = 0.954
"""The median of |a − b| for two normal numbers, in standard deviations of each."""


class MeasurementWarning(TypedDict):
    """One possible problem with a measurement, as in a record."""

    code: Code
    message: str
    advice: str


def load_meter(own: Callable[[], float] = time.process_time) -> Callable[[], float]:
    """Return a function that tells how many CPUs others kept busy since now, on average.

    Args:
        own: returns the CPU seconds of the measurement so far.
    """
    began, before = time.perf_counter(), busy_cpu_seconds() - own()
    return lambda: (busy_cpu_seconds() - own() - before) / (time.perf_counter() - began)


def warnings_about(
    samples: Mapping[str, Blocks],
    *,
    others: float | None = None,
    cpus: int = os.cpu_count() or 1,
    threads: int = 1,
    battery: bool = False,
) -> list[MeasurementWarning]:
    """All warnings for these samples.

    Args:
        samples: for each variant its blocks, in order of timing.
        others: see `load_meter`.
        cpus, threads: CPUs of the machine, and threads used by the measured work.
        battery: whether the machine runs on battery power; see `environment.on_battery`.
    """
    medians = {name: np.array([np.median(block) for block in blocks]) for name, blocks in samples.items()}
    fewest = min(map(len, medians.values()), default=0)
    checks: dict[Code, str | None] = {
        "too few samples": f"{fewest} blocks of each variant" if fewest < FEWEST_BLOCKS else None,
        "noisy machine": _noisy(medians),
        "thermal drift": _drifting(medians),
        "other load": _loaded(others, cpus, threads) or _interrupted(samples),
        "battery": "the machine ran on battery power" if battery else None,
    }
    return [
        {"code": code, "message": message, "advice": ADVICE[code]}
        for code, message in checks.items()
        if message
    ]


def _noisy(medians: Medians) -> str | None:
    """Compares neighbouring blocks, so that slow drift does not count as noise."""
    noise = {
        name: float(np.median(np.abs(np.diff(of_blocks))) / np.median(of_blocks)) / DEVIATIONS
        for name, of_blocks in medians.items()
        if len(of_blocks) > 2
    }
    worst = max(noise, key=noise.__getitem__, default="")
    if not worst or noise[worst] <= NOISE:
        return None
    return f"neighbouring blocks of {worst} vary by {100 * noise[worst]:.0f} % (standard deviation)"


def _drifting(medians: Medians) -> str | None:
    slower = []
    for of_blocks in medians.values():
        third = len(of_blocks) // 3
        if third < 2:
            return None
        slower.append(float(np.median(of_blocks[-third:]) / np.median(of_blocks[:third])) - 1)
    if not slower or min(slower) <= DRIFT:
        return None
    return f"the last third of all blocks was at least {100 * min(slower):.0f} % slower than the first third"


def _loaded(others: float | None, cpus: int, threads: int) -> str | None:
    if others is None or others <= OTHERS or others + threads <= cpus:
        return None
    return (
        f"other processes kept {others:.1f} of {cpus} CPUs busy, "
        f"and this one uses {threads} thread{'s' * (threads != 1)}"
    )


def _interrupted(samples: Mapping[str, Blocks]) -> str | None:
    shares = {
        name: float(np.mean([sample > SPIKE * np.median(block) for block in blocks for sample in block]))
        for name, blocks in samples.items()
        if blocks
    }
    worst = max(shares, key=shares.__getitem__, default="")
    if not worst or shares[worst] <= SPIKES:
        return None
    return f"{100 * shares[worst]:.1f} % of the samples of {worst} took more than twice their block's median"
