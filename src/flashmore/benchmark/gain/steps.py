"""Time the steps of someone's own script, its versions in turn."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from flashmore.benchmark.gain.measure import BEFORE
from flashmore.benchmark.gain.variants import Optimizers, Place, Switch, Variant
from flashmore.upgrade.trace.versions import NotSwapped


class StepTimer:
    """Notes when each optimizer step ends, and changes the code between two of them; use it as a context.

    The versions run forwards and backwards in turn, so that drift hurts all alike: old, new, new, old.

    Args:
        variants: all versions but the original.
        places: where optimizers are made that some of them fuse.
    """

    def __init__(self, variants: Sequence[Variant], places: Sequence[Place] = ()) -> None:
        self.variants = variants
        names = [BEFORE, *(each.name for each in variants)]
        self.order = [*names, *reversed(names)]
        self.optimizers = Optimizers(places)
        self.switch: Switch | None = None
        self.failed: str | None = None
        self.steps = 0
        self.ended: float | None = None
        self.times: dict[str, list[float]] = {name: [] for name in names}

    def __enter__(self) -> "StepTimer":
        self.optimizers.__enter__()
        self.hook = register_optimizer_step_post_hook(self._stepped)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()
        self.optimizers.__exit__()

    def _stepped(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.ended is not None:
            self.times[self.order[(self.steps - 1) % len(self.order)]].append(1000 * (now - self.ended))
        if self.switch is None and self.failed is None:
            try:
                self.switch = Switch(self.variants, self.optimizers)
            except NotSwapped as error:
                self.failed = str(error)
        if self.switch is not None:
            self.switch.to(self.order[self.steps % len(self.order)])
        self.steps += 1
        self.ended = time.perf_counter()

    def samples_ms(self, dropped: int) -> dict[str, list[list[float]]]:
        """Blocks of one step each, as many of every version; the first ones are left out."""
        count = min(map(len, self.times.values()))
        return {name: [[ms] for ms in times[dropped:count]] for name, times in self.times.items()}
