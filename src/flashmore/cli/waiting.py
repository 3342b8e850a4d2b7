"""A progress bar on stderr for work of unknown length: it appears after two seconds, not before."""

import sys
from threading import Lock, Timer
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flashmore.terminal import Terminal, say

PATIENCE_SECONDS = 2.0
COLUMNS = (
    TextColumn("[bold]{task.description}"),
    BarColumn(bar_width=24),
    TextColumn("{task.fields[counted]}"),
    TimeElapsedColumn(),
)


class Waiting:
    """A context manager that shows progress.

    On a terminal it is a bar; elsewhere (a log file, a pipe) one line says that work continues.

    Args:
        what: the activity, such as `searching`.
        of: what is counted, such as `files`; None if nothing is counted.
        total: the total count; None if unknown.
        patience: seconds before anything is shown.
    """

    def __init__(
        self,
        what: str,
        of: str | None = None,
        total: int | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.what = what
        self.of = of
        self.total = total
        self.done = 0
        self.progress: Progress | None = None
        self.lock = Lock()
        self.over = False
        self.timer = Timer(patience, self._appear)
        self.timer.daemon = True

    def reach(self, done: int, total: int) -> None:
        """Set the progress and the total."""
        self.total = total
        self.advance(done - self.done)

    def advance(self, by: int = 1) -> None:
        """Advance the progress."""
        with self.lock:
            self.done += by
            if self.progress is not None:
                self.progress.update(
                    self.task, total=self.total, completed=self.done, counted=self._counted()
                )

    def _appear(self) -> None:
        with self.lock:
            if self.over:
                return
            if not sys.stderr.isatty():
                say(f"{self.what}: {self._counted()}" if self.of else f"{self.what} …")
                return
            self.progress = Progress(*COLUMNS, console=Terminal(stderr=True), transient=True)
            self.task = self.progress.add_task(
                self.what, total=self.total, completed=self.done, counted=self._counted()
            )
            self.progress.start()

    def _counted(self) -> str:
        if self.of is None:
            return ""
        return f"{self.done:,}{'' if self.total is None else f'/{self.total:,}'} {self.of}"

    def __enter__(self) -> Self:
        self.timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.timer.cancel()
        with self.lock:
            self.over = True
            if self.progress is not None:
                self.progress.stop()
