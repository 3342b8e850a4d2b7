"""A progress bar on stderr for work of unknown length: it appears after two seconds, not before."""

import sys
from threading import Lock, Timer
from typing import Any, Self

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
    """A context manager that shows progress: a bar on a terminal, elsewhere one line.

    Args:
        what: the activity, such as `searching`.
        of: what is counted, such as `files`; None if nothing is counted.
        total: the total count; None if unknown.
        patience: seconds before anything is shown.
    """

    def __init__(
        self, what: str, of: str | None = None, total: int | None = None, patience: float = PATIENCE_SECONDS
    ) -> None:
        self.what, self.of, self.total, self.done = what, of, total, 0
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
                self.progress.update(self.task, **self._state())

    def _appear(self) -> None:
        with self.lock:
            if self.over:
                return
            if not sys.stderr.isatty():
                say(f"{self.what}: {self._state()['counted']}" if self.of else f"{self.what} …")
                return
            self.progress = Progress(*COLUMNS, console=Terminal(stderr=True), transient=True)
            self.task = self.progress.add_task(self.what, **self._state())
            self.progress.start()

    def _state(self) -> dict[str, Any]:
        total = "" if self.total is None else f"/{self.total:,}"
        counted = "" if self.of is None else f"{self.done:,}{total} {self.of}"
        return {"total": self.total, "completed": self.done, "counted": counted}

    def __enter__(self) -> Self:
        self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        with self.lock:
            self.over = True
            if self.progress is not None:
                self.progress.stop()
