"""Metrics go to the trackers that are named, and a tracker that fails stops no training."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flashmore.cli.main import main
from flashmore.config import TrainConfig
from flashmore.errors import ConfigError
from flashmore.runs import Run
from flashmore.training.loop import train
from flashmore.training.trackers import TRACKERS, Tracker, Trackers

SMALL = TrainConfig(
    model="bigram", max_steps=4, eval_interval=2, log_interval=1, device="cpu", batch_size=8, samples_every=2
)


def test_no_tracker_starts_by_itself(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "run")
    assert not list((tmp_path / "run").glob("events*"))


def test_a_finished_run_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(SMALL, tmp_path / "run")
    assert main(["log", str(tmp_path / "run"), "--to", "tensorboard"]) == 0
    assert "4 steps" in capsys.readouterr().err
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    lines = Run.open(tmp_path / "run").read_metrics()
    for name in ("loss", "step_ms", "val_loss"):
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert logged == pytest.approx({line["step"]: line[name] for line in lines if name in line})


def test_a_pack_or_no_tracker_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(SMALL, tmp_path / "run")
    assert main(["pack", str(tmp_path / "run"), "--out", str(tmp_path / "run.pack")]) == 0
    assert main(["log", str(tmp_path / "run.pack"), "--to", "tensorboard"]) == 2
    assert "a pack, which has no metrics" in capsys.readouterr().err
    assert main(["log", str(tmp_path / "run"), "--to"]) == 2
    assert main(["log", str(tmp_path / "run"), "--to", "paper"]) == 2
    assert "trackers for --to" in capsys.readouterr().err


def test_unknown_and_missing_trackers_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="tensorboard, wandb, mlflow, trackio"):
        train(TrainConfig(model="bigram", log_to=("paper",)), tmp_path / "run")
    monkeypatch.setitem(TRACKERS, "no_such_package", TRACKERS["tensorboard"])
    with pytest.raises(ConfigError, match="pip install no_such_package"):
        train(TrainConfig(model="bigram", log_to=("no_such_package",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failing_tracker_is_dropped_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = []

    def failing(folder: Path, config: Mapping[str, Any], done: int) -> Tracker:
        """A tracker that loses its connection after two steps."""
        assert folder.is_dir()
        assert (config["max_steps"], done) == (4, 0)

        def log(step: int, values: Mapping[str, float]) -> None:
            assert set(values) <= {"loss", "step_ms", "val_loss"}
            if step == 3:
                raise ConnectionError("the server is away")
            logged.append(step)

        return Tracker(log, partial(pytest.fail, "it was dropped"))

    monkeypatch.setitem(TRACKERS, "json", failing)  # a module that is installed everywhere
    train(TrainConfig(**SMALL.to_json() | {"log_to": ("json",)}), tmp_path / "run")
    assert logged == [1, 2]
    assert "json no longer receives metrics: the server is away" in capsys.readouterr().err
    assert Run.open(tmp_path / "run").read_result() is not None


def test_samples_are_kept_and_are_the_same_after_resuming(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "run")
    lines = Run.open(tmp_path / "run").read_metrics()
    assert [line["step"] for line in lines if "samples" in line] == [2, 4]
    assert all(len(line["samples"]) == 8 for line in lines if "samples" in line)
    train(TrainConfig(**SMALL.to_json() | {"samples_every": 0}), tmp_path / "without")
    same = Run.open(tmp_path / "without").read_metrics()
    assert [line["loss"] for line in same] == [line["loss"] for line in lines]


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in TRACKERS if name != "tensorboard"])
def test_the_other_trackers_take_a_run_offline(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    train(TrainConfig(**SMALL.to_json()), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    with Trackers((name,), run.path, run.config, 0) as used:
        for line in run.read_metrics():
            used.write(line)
        assert used.names == (name,)
