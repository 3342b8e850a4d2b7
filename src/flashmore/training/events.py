"""TensorBoard events beside metrics.jsonl, where TensorBoard is installed.

https://docs.pytorch.org/docs/stable/tensorboard.html
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self


class EventWriter:
    """Writes a run's metrics as TensorBoard scalars; does nothing where TensorBoard is not installed.

    Args:
        folder: the run's folder.
        done: steps done before; TensorBoard drops older events past it.
    """

    def __init__(self, folder: Path, done: int) -> None:
        self._writer = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def write(self, line: Mapping[str, float]) -> None:
        """Write every value of a metrics line but its step, under its own name."""
        if self._writer is not None:
            for name in line.keys() - {"step"}:
                self._writer.add_scalar(name, line[name], line["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
