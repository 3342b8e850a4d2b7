"""Time variants in turn, and say what may be wrong with the result."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flashmore.measuring.environment import others_cpu_seconds
from flashmore.measuring.measure import Stopped, alternate, repeats_for
from flashmore.measuring.warnings import MeasurementWarning, warnings_about


@dataclass(frozen=True)
class Timing:
    """Samples of several variants, taken in turn."""

    samples_ms: dict[str, list[list[float]]]
    """For each variant its blocks, each a list of times in ms."""
    warnings: tuple[MeasurementWarning, ...]
    complete: bool
    """False after Ctrl-C: only whole rounds are kept."""


def time_in_turn(
    variants: Mapping[str, Callable[[], object]],
    *,
    blocks: int,
    block_seconds: float,
    threads: int,
    after_block: Callable[[int], None],
) -> Timing:
    """Time variants in alternating blocks that are about equally long.

    Args:
        variants: a name and one repetition, warmed up; it has finished its work when it returns.
        blocks: blocks of each variant.
        block_seconds: length of a block; one that takes twice as long ends with what it has.
        threads: CPU threads of the measured work.
        after_block: is told how many rounds are done.
    """
    resolution = time.get_clock_info("perf_counter").resolution
    repeats = {
        name: repeats_for(run, block_seconds=block_seconds, resolution=resolution)
        for name, run in variants.items()
    }
    began, others_before = time.perf_counter(), others_cpu_seconds()
    complete = True
    try:
        samples = alternate(
            variants, blocks=blocks, repeats=repeats, warmup=0, most_seconds=2 * block_seconds,
            after_block=after_block,
        )  # fmt: skip
    except Stopped as stopped:
        samples, complete = stopped.samples_ms, False
    seconds, others_after = time.perf_counter() - began, others_cpu_seconds()
    others = None
    if others_before is not None and others_after is not None:
        others = (others_after - others_before) / seconds
    warnings = warnings_about(samples, others=others, cpus=os.cpu_count() or 1, threads=threads)
    return Timing(samples, warnings, complete)
