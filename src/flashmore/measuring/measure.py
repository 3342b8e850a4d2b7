"""Times several variants in alternating blocks within one run."""

import math
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=str)
Clock = Callable[[], float]
"""Seconds since some fixed moment, such as `time.perf_counter`."""

Agree = Callable[[float], float]
"""Maps this process's seconds to those that all processes of a measurement use: it synchronises them."""

TICKS = 1000
"""Minimum length of a block in clock ticks, so that the clock's resolution adds at most a thousandth."""
PROBES = 3


class Stopped(KeyboardInterrupt):
    """Ctrl-C during timing; `samples_ms` has the completed rounds, as returned by `alternate`."""

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
    until: float = math.inf,
    clock: Clock = time.perf_counter,
    agree: Agree = float,
    after_block: Callable[[int], None] = lambda _: None,
) -> dict[str, list[list[float]]]:
    """Run the variants in short alternating blocks, so that drift affects all of them equally.

    Every second round is in reverse order, so that no variant always runs after the same other one.

    Args:
        variants: by name, a function for one repetition, which must synchronise before it returns.
        blocks: blocks per variant.
        repeats: repetitions per block, for all variants or for each.
        warmup: untimed repetitions of each variant before the first block.
        most_seconds: a block that has lasted this long ends early, in case the machine became much slower.
        until: no round but the first begins after this time of the clock.
        agree: called with each time, outside of what is timed. If several processes run the variants
            together, it returns the same to all of them, so that they go on alike.
        after_block: called with the number of completed rounds.

    Returns:
        For each variant its blocks, each a list of at most `repeats` times in milliseconds.

    Raises:
        Stopped: Ctrl-C; an incomplete round is dropped, so that every block has its neighbours.
    """
    samples_ms: dict[str, list[list[float]]] = {name: [] for name in variants}
    order = list(variants)
    try:
        for run in variants.values():
            for _ in range(warmup):
                run()
        for done in range(blocks):
            if done and agree(clock() - until) > 0:
                break
            for name in order if done % 2 == 0 else reversed(order):
                times = repeats if isinstance(repeats, int) else repeats[name]
                samples_ms[name].append(_block(variants[name], times, most_seconds, clock, agree))
            after_block(done + 1)
    except KeyboardInterrupt:
        whole = min(map(len, samples_ms.values()))
        raise Stopped({name: blocks[:whole] for name, blocks in samples_ms.items()}) from None
    return samples_ms


def _block(
    run: Callable[[], object], repeats: int, most_seconds: float, clock: Clock, agree: Agree
) -> list[float]:
    block_ms: list[float] = []
    while len(block_ms) < repeats and sum(block_ms) < 1000 * most_seconds:
        began = clock()
        run()
        block_ms.append(1000 * agree(clock() - began))
    return block_ms


def repeats_for(
    run: Callable[[], object],
    *,
    block_seconds: float,
    resolution: float,
    clock: Clock = time.perf_counter,
    agree: Agree = float,
) -> int:
    """The number of repetitions for a block that is long enough to time.

    Args:
        run: one repetition, warmed up.
        block_seconds: intended length of a block.
        resolution: the clock's resolution in seconds; a block lasts at least a thousand times that.
        agree: as for `alternate`.

    Returns:
        At least 1, based on the fastest of a few probes, so that a disturbed one does not shorten the blocks.
    """
    wanted = max(block_seconds, TICKS * resolution)
    count = 1
    while True:
        fastest = math.inf
        for _ in range(PROBES):
            began = clock()
            for _ in range(count):
                run()
            fastest = min(fastest, agree(clock() - began))
        # A time of a few ticks is imprecise: probe longer pieces until the resolution suffices.
        if fastest >= min(wanted, 10 * resolution):
            return max(1, math.ceil(wanted * count / fastest))
        count *= 10
