"""A progress bar on stderr for work of unknown length: it appears when two seconds have passed, not before."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

PATIENCE_SECONDS = 2.0
COLUMNS = (
    TextColumn("[bold]{task.description}"),
    BarColumn(bar_width=24),
    TextColumn("{task.fields[counted]}"),
    TimeElapsedColumn(),
)


class Waiting:
    """Shows how far something is; use it as a context.

    On a terminal a bar moves; elsewhere (a log file, a pipe) one line says that work goes on.

    Args:
        what: what is done, such as `searching`.
        of: what is counted, such as `files`.
        total: how many there are; None where that is not known beforehand.
    """

    def __init__(self, what: str, of: str, total: int | None = None) -> None:
        self.what = what
        self.of = of
        self.total = total
        self.done = 0
        self.began = time.monotonic()
        self.progress: Progress | None = None
        self.told = False

    def reach(self, done: int, total: int) -> None:
        """So many are done, of so many."""
        self.total = total
        self.advance(done - self.done)

    def advance(self, by: int = 1) -> None:
        """So many more are done."""
        self.done += by
        if self.progress is not None:
            self.progress.update(self.task, total=self.total, completed=self.done, counted=self._counted())
        elif not self.told and time.monotonic() - self.began > PATIENCE_SECONDS:
            self._appear()

    def _appear(self) -> None:
        self.told = True
        if not sys.stderr.isatty():
            sys.stderr.write(f"{self.what}: {self._counted()}\n")
            return
        console = Console(stderr=True, highlight=False, markup=True, emoji=False)
        self.progress = Progress(*COLUMNS, console=console, transient=True)
        self.task = self.progress.add_task(
            self.what, total=self.total, completed=self.done, counted=self._counted()
        )
        self.progress.start()

    def _counted(self) -> str:
        return f"{self.done:,}{'' if self.total is None else f'/{self.total:,}'} {self.of}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()
