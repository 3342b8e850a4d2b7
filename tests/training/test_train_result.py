"""What a finished run says of itself is read as a stranger's word."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flashmore.config import TrainConfig
from flashmore.errors import RunError
from flashmore.runs import Run
from flashmore.training.folders import config_of
from flashmore.training.loop import resume, train
from flashmore.training.result import TrainResult, result_of
from flashmore.training.saving import Saver
from flashmore.training.starting import resumed

SMALL = replace(
    TrainConfig(model="bigram"),
    max_steps=4,
    log_interval=1,
    eval_interval=2,
    device="cpu",
    speedups=("none",),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, TrainResult]:
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = train(SMALL, folder)
    return Run.open(folder), result


def test_it_comes_back_as_training_gave_it(finished: tuple[Run, TrainResult]) -> None:
    run, result = finished
    assert result_of(run) == result


def test_with_makemores_split_it_has_two_more_fields(tmp_path: Path) -> None:
    result = train(replace(SMALL, split="makemore"), tmp_path / "run")
    assert result_of(Run.open(tmp_path / "run")) == result
    assert result.test_loss_unleaked is not None


@pytest.mark.parametrize(
    "change",
    [
        {"model": "mlp"}, {"model": 3}, {"attention": "flash"}, {"steps": 0},
        {"step_ms": -1.0}, {"step_ms": None}, {"val_loss": "low"}, {"test_loss": -1.0}, {"parameters": 1.5},
        {"leak_share": 0.5}, {"train_seconds": [1.0]}, {"test_loss": 1e101}, {"surprise": 1},
        {"run": None}, {"run": [[[[]]]]},
    ],
)  # fmt: skip
def test_what_the_run_cannot_have_given_is_refused(
    finished: tuple[Run, TrainResult], change: dict[str, Any]
) -> None:
    run, result = finished
    try:
        run.write_result(result.to_json() | change)
        with pytest.raises(RunError, match="result"):
            result_of(run)
    finally:
        run.write_result(result.to_json())


def test_a_run_that_has_gone_on_since_has_no_result(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert result_of(run) is not None
    with resumed(run.path, 8) as session:
        session.trainer.train_step()
        session.save()
        session.saver.wait()
    assert result_of(run) is None
    assert resume(run.path).steps == 8
    assert result_of(run) is not None


def test_a_run_that_was_complete_already_gives_its_result_again(finished: tuple[Run, TrainResult]) -> None:
    run, result = finished
    assert resume(run.path) == result


def test_a_run_that_was_saved_before_its_first_logged_step_can_end_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    stop_at_the_third_save(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(replace(SMALL, log_interval=10, eval_interval=10, save_seconds=1e-9), run)
    monkeypatch.undo()
    done = Run.open(run).load_state()
    assert (done.step, done.metrics_bytes) == (2, 0)
    assert resume(run, steps=2).step_ms > 0


def stop_at_the_third_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a second Ctrl-C does."""
    saved: list[str] = []
    save: Callable[..., None] = Saver.save

    def counted(saver: Saver, *arguments: Any) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(saver, *arguments)
        saved.append("once more")

    monkeypatch.setattr(Saver, "save", counted)


def test_a_config_that_is_not_what_was_asked_for_is_refused(tmp_path: Path) -> None:
    train(SMALL, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    config_of(run)
    for name, value in (("learning_rate", 1e-3), ("seed", 5), ("dtype", "bfloat16"), ("file", "other.txt")):
        other = replace(run, settings=replace(run.settings, requested=SMALL.to_json() | {name: value}))
        with pytest.raises(RunError, match=name):
            config_of(other)
