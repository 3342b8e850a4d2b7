"""Time the steps of someone's own script, with the code before and after a rewrite in turn."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from flashmore.upgrade.trace.versions import NotSwapped, Versions

ORDER = ("old step", "new step", "new step", "old step")
"""Which version step n runs, n modulo 4: each comes first as often as second, so drift hurts both alike."""


class StepTimer:
    """Notes when each optimizer step ends, and changes the code between two of them; use it as a context.

    Args:
        rewritten: resolved paths, and the whole new source of each.
    """

    def __init__(self, rewritten: Mapping[str, str]) -> None:
        self.rewritten = rewritten
        self.versions: Versions | None = None
        self.failed: str | None = None
        self.steps = 0
        self.ended: float | None = None
        self.times: dict[str, list[float]] = {"old step": [], "new step": []}

    def __enter__(self) -> "StepTimer":
        self.hook = register_optimizer_step_post_hook(self._stepped)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _stepped(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.ended is not None:
            self.times[ORDER[(self.steps - 1) % len(ORDER)]].append(1000 * (now - self.ended))
        if self.versions is None and self.failed is None:
            try:
                self.versions = Versions(self.rewritten)
            except NotSwapped as error:
                self.failed = str(error)
        if self.versions is not None:
            after = ORDER[self.steps % len(ORDER)] == "new step"
            (self.versions.after if after else self.versions.before)()
        self.steps += 1
        self.ended = time.perf_counter()

    def samples_ms(self, dropped: int) -> dict[str, list[list[float]]]:
        """Blocks of one step each, as many of either version; the first ones are left out."""
        count = min(map(len, self.times.values()))
        return {name: [[ms] for ms in times[dropped:count]] for name, times in self.times.items()}
