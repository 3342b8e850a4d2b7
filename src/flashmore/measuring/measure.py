"""Time several variants of one thing side by side, in alternating blocks within one run."""

import math
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=str)
Clock = Callable[[], float]
"""Seconds from some fixed moment, such as `time.perf_counter`."""

TICKS = 1000
"""A block lasts at least so many of the clock's smallest steps: reading it adds a thousandth at most."""
PROBES = 3


class Stopped(KeyboardInterrupt):
    """Ctrl-C while blocks were being timed; the rounds that were finished are kept.

    Args:
        samples_ms: what `alternate` would have returned, with as many blocks as there were whole rounds.
    """

    def __init__(self, samples_ms: dict[str, list[list[float]]]) -> None:
        super().__init__()
        self.samples_ms = samples_ms


def alternate(
    variants: Mapping[Key, Callable[[], object]],
    *,
    blocks: int,
    repeats: int | Mapping[Key, int],
    warmup: int,
    most_seconds: float = math.inf,
    clock: Clock = time.perf_counter,
    after_block: Callable[[int], None] = lambda _: None,
) -> dict[str, list[list[float]]]:
    """Run each variant in short blocks, in turn, so that a machine that drifts hurts all alike.

    Every second round goes through the variants backwards, so that none always runs after the same other one.

    Args:
        variants: a name and what one repetition does; it must have finished its work when it returns.
        blocks: blocks of each variant.
        repeats: repetitions in a block, for all or for each.
        warmup: repetitions of each variant before the first block, not kept.
        most_seconds: a block that has lasted so long ends with what it has, so that a machine that gets
            much slower than it was does not keep the user waiting.
        clock: the clock to read.
        after_block: is told how many rounds are done.

    Returns:
        For each variant its blocks, each a list of `repeats` times in milliseconds, or of fewer.

    Raises:
        Stopped: Ctrl-C; a round that was cut off is dropped, so that every block has its neighbours.
    """
    samples_ms: dict[str, list[list[float]]] = {name: [] for name in variants}
    order = list(variants)
    try:
        for run in variants.values():
            for _ in range(warmup):
                run()
        for done in range(blocks):
            for name in order if done % 2 == 0 else reversed(order):
                times = repeats if isinstance(repeats, int) else repeats[name]
                samples_ms[name].append(_block(variants[name], times, most_seconds, clock))
            after_block(done + 1)
    except KeyboardInterrupt:
        whole = min(map(len, samples_ms.values()))
        raise Stopped({name: blocks[:whole] for name, blocks in samples_ms.items()}) from None
    return samples_ms


def _block(run: Callable[[], object], repeats: int, most_seconds: float, clock: Clock) -> list[float]:
    block_ms: list[float] = []
    while len(block_ms) < repeats and sum(block_ms) < 1000 * most_seconds:
        began = clock()
        run()
        block_ms.append(1000 * (clock() - began))
    return block_ms


def repeats_for(
    run: Callable[[], object], *, block_seconds: float, resolution: float, clock: Clock = time.perf_counter
) -> int:
    """How many repetitions make a block that is long enough to be timed well.

    Args:
        run: one repetition, warmed up.
        block_seconds: how long a block should last.
        resolution: the clock's smallest step in seconds; a block lasts at least a thousand of them.
        clock: the clock to read.

    Returns:
        At least 1. The fastest of a few probes decides, so that a disturbed one does not make blocks short.
    """
    wanted = max(block_seconds, TICKS * resolution)
    count = 1
    while True:
        fastest = math.inf
        for _ in range(PROBES):
            began = clock()
            for _ in range(count):
                run()
            fastest = min(fastest, clock() - began)
        # A time of a few ticks says little: probe longer pieces until the clock can tell them apart.
        if fastest >= min(wanted, 10 * resolution):
            return max(1, math.ceil(wanted * count / fastest))
        count *= 10
