"""Checkpoints saved in a thread while training goes on, and what happens while the disk takes none."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any

from torch import Tensor

from flashmore.config import TrainConfig
from flashmore.errors import RunError, StorageError
from flashmore.parallel import whole_tensor
from flashmore.runs import Run, State
from flashmore.runs.checkpoint import Image
from flashmore.runs.metrics import MetricsLog
from flashmore.terminal import say

FIRST_PAUSE = 1.0
"""Seconds until a failed save is tried again; they double with each failure, up to `save_seconds`."""


class Saver(AbstractContextManager["Saver"]):
    """Writes a run's checkpoints and metrics, one checkpoint at a time.

    With `on_save_error="continue"`, a disk that fails is told once and tried again; the last checkpoint is
    kept, and the lines of metrics.jsonl stay in memory. So does a checkpoint of the best weights, in a second
    copy: it is saved before any later one that refers to it.

    Args:
        run: the run, whose lock is held.
        metrics: its metrics.jsonl; None on a rank that writes nothing.
        config: `save_seconds`, `keep` and `on_save_error`.
        step: the step of the last checkpoint.

    Raises:
        StorageError: from every method, with `on_save_error="stop"`: writing failed, maybe some steps ago.
    """

    def __init__(self, run: Run, metrics: MetricsLog | None, config: TrainConfig, step: int) -> None:
        self._run, self._metrics, self._config = run, metrics, config
        self._image = Image()
        self._pool = ThreadPoolExecutor(1, "save")
        self._writing: Future[None] | None = None
        self._unsaved: list[tuple[Image, State]] = []
        """What is to be written: after a failure, the checkpoint of the best weights; the last checkpoint."""
        self._failure: StorageError | None = None
        self._pause = FIRST_PAUSE
        self._due = time.monotonic() + config.save_seconds
        self.step = step
        """The step of the last checkpoint that is on the disk."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        if self._metrics is None:
            return
        try:
            self._metrics.append(line)
        except StorageError as error:
            self._failed(error)
        self._require_no_failure()

    def is_due(self, seconds: float) -> bool:
        """Whether to save before an operation of this duration, in seconds."""
        self._require_no_failure()
        return self._metrics is not None and time.monotonic() + seconds > self._due

    def save(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: State) -> None:
        """Copy a checkpoint's tensors and begin to write them, once the one before has been written.

        Those of a sharded model are gathered one by one: the other ranks must ask for them in this order.
        """
        self.wait()
        self._unsaved = [(image, best) for image, best in self._unsaved if best.step == state.best_step]
        if any(image is self._image for image, _ in self._unsaved):
            self._image = Image()
        self._image.take(weights, optimizer, whole_tensor)
        self._unsaved.append((self._image, state))
        self._due = time.monotonic() + self._config.save_seconds
        self._begin()

    def _begin(self) -> None:
        assert self._metrics is not None
        self._writing = self._pool.submit(self._write, self._metrics)

    def wait(self) -> None:
        """Wait until no checkpoint is being written."""
        if self._writing is not None:
            self._writing.result()
        self._require_no_failure()

    def finish(self, step: int) -> None:
        """Wait for the last checkpoint, that of `step`; a StorageError if the disk takes it now neither."""
        self.wait()
        if self._unsaved:
            self._begin()
            self.wait()
        if self._metrics is not None and self._writing is None:  # a killed process may have left more
            with suppress(RunError, StorageError):
                self._run.prune(self._run.load_state(best_lost=True), self._config.keep)
        if self._failure is not None:
            lost = f"steps {self.step + 1:,} to {step:,} and their metrics are lost"
            raise StorageError(
                f"to save step {step:,} of {self._run.path}",
                f"{self._failure.found}; {lost}",
                f"{self._failure.valid}; then, from step {self.step:,}: {self._run.resume_command()}",
            ) from self._failure

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()
        self._image = Image()  # the final evaluation needs the memory

    def _write(self, metrics: MetricsLog) -> None:
        """In the thread: the metrics first, because the checkpoints refer to them."""
        try:
            self._run.require_here()
            metrics.sync()
            while self._unsaved:
                image, state = self._unsaved[0]
                image.write(self._run.checkpoint(state.step), self._run.digest, state)
                del self._unsaved[0]
                self.step = state.step
                metrics.saved(state)
                with suppress(RunError, StorageError):  # removes them after a later save
                    self._run.prune(state, self._config.keep)
        except StorageError as error:
            self._failed(error)
        except RunError as error:  # another folder or file has taken the place of this run's
            self._failed(StorageError(error.wanted, f"{error.wanted}: {error.found}", error.valid))
        else:
            if self._failure is not None:
                say(f"{self._run.path} is saved again, at step {self.step:,}")
            self._failure, self._pause = None, FIRST_PAUSE

    def _failed(self, error: StorageError) -> None:
        if self._failure is None and self._config.on_save_error == "continue":
            say(f"{self._run.path} cannot be saved, training goes on and tries again: {error.found}")
        self._failure = error
        self._due = min(self._due, time.monotonic() + self._pause)
        self._pause = min(2 * self._pause, self._config.save_seconds)

    def _require_no_failure(self) -> None:
        if self._failure is not None and self._config.on_save_error == "stop":
            raise self._failure
