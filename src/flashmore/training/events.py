"""TensorBoard events next to metrics.jsonl, if TensorBoard is installed.

https://docs.pytorch.org/docs/stable/tensorboard.html
"""

import importlib.util
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from flashmore.terminal import say


class EventWriter:
    """Writes a run's metrics as TensorBoard scalars; does nothing if TensorBoard is not installed.

    Args:
        folder: the run's folder.
        done: steps already done; TensorBoard drops earlier events after this step.
    """

    def __init__(self, folder: Path, done: int) -> None:
        self._writer = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=done + 1)
        self._excepthook = threading.excepthook

    def write(self, line: Mapping[str, float]) -> None:
        """Write every value of a metrics line except its step, under its own name.

        If writing fails, training continues without events, with one note.
        """
        if self._writer is not None:
            try:
                for name in line.keys() - {"step"}:
                    self._writer.add_scalar(name, line[name], line["step"])
            except OSError as error:
                self._give_up(error)

    def _on_failure(self, failure: threading.ExceptHookArgs) -> None:
        """Print no traceback from the writer's thread: the next call in this thread raises the same error."""
        if not type(failure.thread).__module__.startswith("tensorboard"):
            self._excepthook(failure)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        say(f"TensorBoard events are no longer written: {error.strerror or error}")

    def __enter__(self) -> Self:
        threading.excepthook = self._on_failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as refused:
            self._give_up(refused)
        finally:
            threading.excepthook = self._excepthook
