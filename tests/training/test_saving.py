"""A disk that takes no checkpoints for a while, or not at all."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, StorageError
from flashmore.runs import Run, checkpoint
from flashmore.training.loop import Observer, resume, train
from flashmore.training.session import Session

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a folder in use cannot be moved")
NAMES = ("anna", "bella", "carla", "dora", "eva", "fiona", "gina", "hanna", "ida", "julia")


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    made = TrainConfig(file=tmp_path / "names.txt", model="mlp", n_embd=8, device="cpu", speedups=("none",))
    return replace(made, batch_size=4, max_steps=12, eval_interval=2, log_interval=1, dropout=0.1)


class At(Observer):
    """Does something after certain steps, when no checkpoint is being written."""

    def __init__(self, acts: dict[int, Callable[[], object]]) -> None:
        self.acts = acts

    def started(self, session: Session) -> None:
        self.saver = session.saver

    def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
        if step in self.acts:
            self.saver.wait()
            self.acts[step]()


def move(source: Path, target: Path) -> Callable[[], object]:
    return lambda: source.rename(target)


def require_same(run: Path, whole: Path) -> None:
    first, second = Run.open(run), Run.open(whole)
    assert first.load_state().step == second.load_state().step
    for step in (first.load_state().step, None):
        left, right = first.load_weights(step), second.load_weights(step)
        assert all(torch.equal(left[name], right[name]) for name in right)
    losses = [[line["loss"] for line in each.read_metrics()] for each in (first, second)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == second.load_state().step


def copied(source: Path, target: Path) -> Callable[[], object]:
    """A copy in the place of a folder: the open files are those of the other one."""

    def act() -> None:
        shutil.copytree(source, target)
        shutil.rmtree(source)

    return act


@pytest.mark.parametrize("back", [move, copied])
def test_a_folder_that_is_away_for_a_while_costs_nothing(
    back: Callable[[Path, Path], Callable[[], object]],
    config: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(config, tmp_path / "whole")
    run, away = tmp_path / "run", tmp_path / "away"
    train(config, run, At({5: move(run, away), 9: back(away, run)}))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith(f"{run} cannot be saved, training goes on and tries again: ")
    assert told[1] == f"{run} is saved again, at step 10"
    require_same(run, tmp_path / "whole")


@pytest.mark.parametrize("steps_away", [1, 5])
def test_best_weights_that_cannot_be_saved_at_first_are_kept(
    steps_away: int, config: TrainConfig, tmp_path: Path
) -> None:
    config = replace(config, max_steps=20, learning_rate=0.1)
    train(config, tmp_path / "whole")
    state = Run.open(tmp_path / "whole").load_state()
    best = state.best_step
    assert best is not None
    assert best + steps_away < state.step - config.keep * config.eval_interval, "others are saved after it"
    run, away = tmp_path / "run", tmp_path / "away"

    class Check(At):
        """After each step, every checkpoint on the disk has that of its best weights beside it."""

        def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
            super().stepped(step, loss, step_ms, characters_per_s)
            self.saver.wait()
            if run.exists():
                opened = Run.open(run)
                for saved in opened.steps:
                    best_step = checkpoint.load(opened.checkpoint(saved), opened.digest).state.best_step
                    assert best_step in (None, *opened.steps)

    train(config, run, Check({best: move(run, away), best + steps_away: move(away, run)}))
    require_same(run, tmp_path / "whole")


def test_a_folder_that_stays_away_is_told_with_what_is_lost(config: TrainConfig, tmp_path: Path) -> None:
    run, away = tmp_path / "run", tmp_path / "away"
    with pytest.raises(StorageError, match="steps 5 to 12 and their metrics are lost") as caught:
        train(config, run, At({5: move(run, away)}))
    assert f"then, from step 4: flashmore train --resume {run}" in caught.value.valid
    away.rename(run)
    resume(run)
    train(config, tmp_path / "whole")
    require_same(run, tmp_path / "whole")


def test_another_run_in_the_place_of_this_one_is_left_alone(config: TrainConfig, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    train(replace(config, seed=7), other)
    before = {path.name: path.read_bytes() for path in other.iterdir()}

    def swap() -> None:
        run.rename(tmp_path / "away")
        other.rename(run)

    with pytest.raises(StorageError, match="another run"):
        train(config, run, At({5: swap}))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_with_stop_the_first_failure_ends_training(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    steps: list[int] = []

    class Count(At):
        def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
            super().stepped(step, loss, step_ms, characters_per_s)
            steps.append(step)

    with pytest.raises(StorageError, match="missing"):
        train(replace(config, on_save_error="stop"), run, Count({5: move(run, tmp_path / "away")}))
    assert steps[-1] < 9
    assert capsys.readouterr().err == ""
    assert Run.open(tmp_path / "away").load_state().step == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("keep", 0), ("save_seconds", 0.0), ("save_seconds", -1.0), ("save_seconds", float("nan"))],
)
def test_values_out_of_range_are_refused(name: str, value: float, config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=name.replace("_", "-")):
        replace(config, **{name: value})  # type: ignore[arg-type]
