"""The progress line of a training run, on stderr."""

import math
import os
import time
from typing import Self

import psutil
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from flashmore.files import disk_errors, open_regular
from flashmore.measuring.environment import on_battery
from flashmore.ranks import print_to
from flashmore.terminal import Terminal, duration
from flashmore.training.loop import Observer
from flashmore.training.session import Session

QUIET_SECONDS = 10.0
"""Elsewhere than on a terminal, a line is printed when this time has passed without one."""
SLOWER = 1.5
"""Steps this many times as long as the fastest ones are reported."""
BUSY = 0.5
"""Load average for each CPU that is reported before training."""
COLUMNS = (
    TextColumn("[bold]{task.description}"),
    BarColumn(bar_width=None),  # what the others leave: at least a dozen of 80 columns
    TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
    TextColumn("{task.fields[figures]}"),
    TimeRemainingColumn(compact=True),
)


def conditions() -> list[str]:
    """What may make training slow on this machine now."""
    load, cpus = psutil.getloadavg()[0], psutil.cpu_count() or 1
    busy = f"this machine is busy (load average {load:.1f} on {cpus} CPUs): steps may take longer"
    battery = "on battery power, steps may take longer"
    return [busy] * (load >= BUSY * cpus) + [battery] * on_battery()


class ProgressLine(Observer):
    """A context manager and observer that shows step, loss, ms per step and time left.

    On a terminal the line is updated in place. Elsewhere (a log file, a pipe) each evaluation prints a line,
    and so do `QUIET_SECONDS` without one.
    """

    def __init__(self) -> None:
        self.console = Terminal(stderr=True)
        self.live = self.console.file.isatty()  # whatever $FORCE_COLOR says
        self.progress = Progress(*COLUMNS, console=self.console, transient=False)
        self.figures = self.left = ""
        self.fastest_ms = math.inf
        self.printed = time.monotonic()

    def started(self, session: Session) -> None:
        """Print what is trained, and which attention backend runs and why.

        What a rank other than 0 prints goes to a file in the run's folder from here on.
        """
        if session.ranks.rank:
            log = session.run.path / f"rank-{session.ranks.rank}.log"
            with disk_errors(f"to write {log}", log), open_regular(log, os.O_RDWR | os.O_CREAT) as file:
                file.seek(0, os.SEEK_END)
                print_to(file.fileno())
        run, resolved = session.run, session.resolved
        self.config = session.config
        lines = [f"{run.model.model} on {session.datasets.described}; {resolved.device}; run {run.path}"]
        if resolved.choice is not None:
            lines.append(f"attention: {resolved.choice.backend} ({resolved.choice.why})")
        for line in (*lines, *resolved.notes, *conditions()):
            self.console.print(line, soft_wrap=not self.live)
        self.fastest_ms = math.inf
        self.task = self.progress.add_task(
            run.model.model, total=session.config.max_steps, completed=session.trainer.done, figures=""
        )
        if self.live:
            self.progress.start()

    def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
        """Update the line."""
        self.fastest_ms = min(self.fastest_ms, step_ms)
        if step_ms > SLOWER * self.fastest_ms:
            slower = f"steps now take {step_ms / self.fastest_ms:.1f} times as long as before"
            self.console.print(
                f"{slower}: the CPUs may be busy, or these items longer", soft_wrap=not self.live
            )
            self.fastest_ms = step_ms
        self.figures = f"loss {loss:.4f}  {step_ms:.2f} ms a step"
        self.progress.update(self.task, completed=step, figures=self.figures)
        self.figures += f"  {characters_per_s:,.0f} characters/s"
        remaining = self.config.max_steps - step
        self.left = f"  {duration(remaining * step_ms / 1000)} left" if remaining else ""
        evaluated = step % self.config.eval_interval == 0 or not remaining  # prints a line of its own
        if not (self.live or evaluated) and time.monotonic() - self.printed >= QUIET_SECONDS:
            self._print_line(step)

    def evaluated(self, step: int, val_loss: float | None, is_best: bool) -> None:
        """Print a line that stays."""
        told = "" if val_loss is None else f"  validation {val_loss:.4f}"
        if not self.live:
            self._print_line(step, told)
        elif told:
            self.console.print(f"step {step:,}{told}{' (best so far)' * is_best}")

    def _print_line(self, step: int, told: str = "") -> None:
        self.console.print(f"step {step:,}  {self.figures}{told}{self.left}", soft_wrap=True)
        self.printed = time.monotonic()

    def stopped_early(self, step: int, best_step: int) -> None:
        """Say so, and which weights are kept."""
        why = f"no lower validation loss since step {best_step:,}, whose weights are kept"
        self.console.print(
            f"stopped early at step {step:,}: {why} (use --patience 0 to keep training)",
            soft_wrap=not self.live,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:  # elsewhere it never began, and stopping would print an empty line
            self.progress.stop()
