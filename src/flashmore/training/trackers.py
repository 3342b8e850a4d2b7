"""Experiment trackers: metrics go to any that is named with `--log-to`, offline by default."""

import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from flashmore.errors import ConfigError
from flashmore.terminal import say

PROJECT = "flashmore"


class Tracker(NamedTuple):
    """A tracker that has been opened for a run."""

    log: Callable[[int, Mapping[str, float]], object]
    """Write the values of a step by name."""
    close: Callable[[], object]
    """Write what is still buffered."""


def _tensorboard(folder: Path, _config: Mapping[str, Any], done: int) -> Tracker:
    """Event files in the run's folder: https://docs.pytorch.org/docs/stable/tensorboard.html."""
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder), purge_step=done + 1)

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def _wandb(folder: Path, config: Mapping[str, Any], _done: int) -> Tracker:
    """Weights & Biases, in the run's folder, without network unless WANDB_MODE says otherwise.

    https://docs.wandb.ai/ref/python/init/
    """
    import wandb

    mode = os.environ.get("WANDB_MODE", "offline")
    run: Any = wandb.init(project=PROJECT, name=folder.name, dir=str(folder), config=dict(config), mode=mode)
    return Tracker(lambda step, values: run.log(dict(values), step=step), run.finish)


def _mlflow(folder: Path, config: Mapping[str, Any], _done: int) -> Tracker:
    """MLflow, in a database in the run's folder unless MLFLOW_TRACKING_URI says otherwise.

    https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html
    """
    from mlflow import MlflowClient

    uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(folder / 'mlflow.db').absolute()}")
    client: Any = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(PROJECT)
    experiment = found.experiment_id if found else client.create_experiment(PROJECT)
    run = client.create_run(experiment, run_name=folder.name).info.run_id
    for name, value in config.items():
        client.log_param(run, name, value)

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            client.log_metric(run, name, value, step=step)

    return Tracker(log, partial(client.set_terminated, run))


def _trackio(folder: Path, config: Mapping[str, Any], _done: int) -> Tracker:
    """Trackio, in its local database: https://huggingface.co/docs/trackio."""
    import trackio

    trackio.init(project=PROJECT, name=folder.name, config=dict(config))
    return Tracker(lambda step, values: trackio.log(dict(values), step=step), trackio.finish)


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
"""What opens each for a run, given its folder, its config and the number of steps done; by the names that
`--log-to` takes, which are also those of their packages."""


def require_installed(names: Iterable[str], option: str = "--log-to") -> None:
    """Refuse unknown trackers and those whose package is missing, with a ConfigError."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"trackers for {option}", f"'{name}'", ", ".join(TRACKERS))
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"the package {name} for {option} {name}", "not installed", f"pip install {name}"
            )


class Trackers(AbstractContextManager["Trackers"]):
    """Writes metrics to several trackers. One that fails is dropped with a note, and training continues."""

    def __init__(self, names: Iterable[str], folder: Path, config: Mapping[str, Any], done: int) -> None:
        require_installed(names)
        self._trackers: dict[str, Tracker] = {}
        self._excepthook = threading.excepthook
        for name in dict.fromkeys(names):
            self._attempt(name, partial(self._open, name, folder, config, done))

    def _open(self, name: str, folder: Path, config: Mapping[str, Any], done: int) -> None:
        self._trackers[name] = TRACKERS[name](folder, config, done)

    @property
    def names(self) -> tuple[str, ...]:
        """Those that have not failed."""
        return tuple(self._trackers)

    def write(self, line: Mapping[str, Any]) -> None:
        """Write the numbers of a metrics line, except its step, under their names."""
        values = {name: value for name, value in line.items() if name not in ("step", "samples")}
        for name, tracker in list(self._trackers.items()):
            self._attempt(name, partial(tracker.log, line["step"], values))

    def _attempt(self, name: str, call: Callable[[], object]) -> None:
        try:
            with redirect_stdout(sys.stderr):  # stdout is for results
                call()
        except Exception as error:  # noqa: BLE001 - whatever another package raises must not end training
            self._trackers.pop(name, None)
            cause = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
            say(f"{name} no longer receives metrics: {cause or type(error).__name__}")

    def _on_failure(self, failure: threading.ExceptHookArgs) -> None:
        """Print no traceback of TensorBoard's thread: the next call here raises the same error."""
        if not type(failure.thread).__module__.startswith("tensorboard"):
            self._excepthook(failure)

    def __enter__(self) -> Self:
        threading.excepthook = self._on_failure
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for name, tracker in list(self._trackers.items()):
                self._attempt(name, tracker.close)
        finally:
            threading.excepthook = self._excepthook
