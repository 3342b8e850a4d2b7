"""Several versions of one running program, all rewrites, each rule's alone, none, and times of its steps."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from flashmore.benchmark.gain.measure import BEFORE
from flashmore.upgrade.trace.versions import NotSwapped, Versions

Place = tuple[str, int, int]
"""A resolved path, the first line and the last."""


@dataclass(frozen=True)
class Variant:
    """One version.

    Args:
        name: of its samples.
        rewritten: resolved paths, and the whole new source of each.
        fuses: whether the optimizers that rewrites would fuse are fused.
    """

    name: str
    rewritten: Mapping[str, str]
    fuses: bool = False


class Optimizers:
    """The optimizers that a program makes at some places; use it as a context around the program.

    Args:
        places: where they are made.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = places
        self.found: list[Optimizer] = []
        self.resolved = cache(lambda name: str(Path(name).resolve()))

    def __enter__(self) -> "Optimizers":
        made = self.made = Optimizer.__init__

        def noted(optimizer: Optimizer, *args: Any, **named: Any) -> None:
            made(optimizer, *args, **named)
            if self._stands_there(sys._getframe(1)):
                self.found.append(optimizer)

        if self.places:
            Optimizer.__init__ = noted  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        Optimizer.__init__ = self.made  # type: ignore[method-assign]

    def _stands_there(self, frame: FrameType | None) -> bool:
        while frame is not None:
            path = self.resolved(frame.f_code.co_filename)
            if any(path == file and first <= frame.f_lineno <= last for file, first, last in self.places):
                return True
            frame = frame.f_back
        return False

    def fuse(self, fused: bool) -> None:
        """Let their next steps be fused, or not, as if they had been made so."""
        for optimizer in self.found:
            for group in optimizer.param_groups:
                group["fused"] = fused or None
                for parameter in group["params"]:
                    state = optimizer.state.get(parameter, {})
                    if isinstance(step := state.get("step"), torch.Tensor):  # where Adam keeps it for each
                        state["step"] = step.to(parameter.device if fused else "cpu")
            optimizer._step_supports_amp_scaling = fused  # type: ignore[attr-defined]


class Switch:
    """Switches a program between its versions; made while the original code is active.

    Args:
        variants: all but the original.
        optimizers: those that some variants fuse.

    Raises:
        NotSwapped: a function cannot take the code of a version.
    """

    def __init__(self, variants: Sequence[Variant], optimizers: Optimizers) -> None:
        self.optimizers = optimizers
        self.fuses = {each.name: each.fuses for each in variants}
        self.versions = {each.name: Versions(each.rewritten) for each in variants if each.rewritten}
        self.active: Versions | None = None

    def to(self, name: str) -> None:
        """From now on one version runs; the original, where it is none of the variants."""
        if self.active is not None:
            self.active.before()
        self.active = self.versions.get(name)
        if self.active is not None:
            self.active.after()
        if any(self.fuses.values()):
            self.optimizers.fuse(self.fuses.get(name, False))


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
