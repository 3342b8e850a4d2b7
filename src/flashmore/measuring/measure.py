"""Time several variants of one thing side by side, in alternating blocks within one run."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=str)
Clock = Callable[[], float]
"""Seconds from some fixed moment, such as `time.perf_counter`."""


def alternate(
    variants: Mapping[Key, Callable[[], object]],
    *,
    blocks: int,
    repeats: int,
    warmup: int,
    clock: Clock = time.perf_counter,
    after_block: Callable[[int], None] = lambda _: None,
) -> dict[str, list[list[float]]]:
    """Run each variant in short blocks, in turn, so that a machine that drifts hurts all alike.

    Every second round goes through the variants backwards, so that none always runs after the same other one.

    Args:
        variants: a name and what one repetition does; it must have finished its work when it returns.
        blocks: blocks of each variant.
        repeats: repetitions in a block.
        warmup: repetitions of each variant before the first block, not kept.
        clock: the clock to read.
        after_block: is told how many rounds are done.

    Returns:
        For each variant its blocks, each a list of `repeats` times in milliseconds.
    """
    for run in variants.values():
        for _ in range(warmup):
            run()
    samples_ms: dict[str, list[list[float]]] = {name: [] for name in variants}
    order = list(variants)
    for done in range(blocks):
        for name in order if done % 2 == 0 else reversed(order):
            run, block = variants[name], []
            for _ in range(repeats):
                began = clock()
                run()
                block.append(1000 * (clock() - began))
            samples_ms[name].append(block)
        after_block(done + 1)
    return samples_ms
