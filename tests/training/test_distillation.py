"""Runs that learn from other runs: what they are taught, resuming without the teachers, refusals."""

import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rank_jobs
from flashmore.config import TrainConfig
from flashmore.data.batches import IGNORE
from flashmore.errors import ConfigError, FlashmoreError, Interrupted, RunError
from flashmore.generation.load import load_model
from flashmore.models.registry import build
from flashmore.runs import Run, locked
from flashmore.training.corpus import read_corpus
from flashmore.training.distillation import open_teachers
from flashmore.training.fit import fit
from flashmore.training.loop import Observer, resume, train
from flashmore.training.splits import require_random_splits
from flashmore.training.verify import verify

SMALL = TrainConfig(**rank_jobs.SMALL)


class PressCtrlC(Observer):
    """Sends this process the signal of Ctrl-C once a step is done."""

    def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("teachers")
    train(replace(SMALL, seed=1, max_steps=60, eval_interval=60), folder / "one")
    train(replace(SMALL, seed=2, max_steps=30, eval_interval=30, n_embd=8), folder / "two")
    return str(folder / "one"), str(folder / "two")


def test_targets_are_the_mean_of_what_the_teachers_predict(teachers: tuple[str, ...]) -> None:
    config, corpus = replace(SMALL, teacher=teachers), read_corpus(SMALL)
    config = fit(config, corpus)[0]
    runs = open_teachers(config, corpus.split, corpus.vocabulary)
    data = corpus.datasets(config, torch.device("cpu"), teachers=runs).train
    models = [load_model(run, "cpu") for run in runs]
    batch = data.batch(3)
    with torch.inference_mode():
        mean = (models[0](batch.ids).softmax(-1) + models[1](batch.ids).softmax(-1)) / 2
    real = batch.targets != IGNORE
    assert batch.soft_targets is not None
    torch.testing.assert_close(batch.soft_targets[real], mean[real], rtol=1e-5, atol=1e-6)
    assert not batch.soft_targets[~real].any()


def test_a_run_is_resumed_without_its_teachers(teachers: tuple[str, ...], tmp_path: Path) -> None:
    copies = [shutil.copytree(teacher, tmp_path / Path(teacher).name) for teacher in teachers]
    config = replace(SMALL, teacher=tuple(map(str, copies)))
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", PressCtrlC())
    for copy in copies:
        shutil.rmtree(copy)
    resume(tmp_path / "run")
    whole, run = (load_file(max((tmp_path / name).glob("step-*"))) for name in ("whole", "run"))
    assert whole.keys() == run.keys()
    assert all(torch.equal(whole[name], run[name]) for name in whole)


def test_a_damaged_teacher_is_found(teachers: tuple[str, ...], tmp_path: Path) -> None:
    train(replace(SMALL, teacher=teachers, max_steps=4), tmp_path / "run")
    assert not [each for each in verify(tmp_path / "run") if each.problem]
    pack = tmp_path / "run" / "teacher-2.pack"
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    assert [each.file for each in verify(tmp_path / "run") if each.problem] == [pack.name]
    with pytest.raises(RunError, match="altered"):
        resume(tmp_path / "run", 8)
    shutil.copy(pack.with_name("teacher-1.pack"), pack)  # intact, but not the one that the run began with
    assert [each.file for each in verify(tmp_path / "run") if each.problem] == [pack.name]
    with pytest.raises(RunError, match="altered"):
        resume(tmp_path / "run", 8)
    pack.unlink()
    with pytest.raises(RunError, match="teacher-2"):
        resume(tmp_path / "run", 8)


def test_a_teacher_may_be_a_path_written_in_any_way() -> None:
    assert TrainConfig(teacher=[Path("runs/one"), "./runs/two/"]).teacher == ("runs/one", "runs/two")  # type: ignore[arg-type]


def test_a_pack_names_no_folder_of_a_teacher(teachers: tuple[str, ...], tmp_path: Path) -> None:
    from flashmore.cli.pack import main

    train(replace(SMALL, teacher=teachers, max_steps=4), tmp_path / "run")
    main([str(tmp_path / "run"), "--out", str(tmp_path / "run.pack")])
    assert Run.open(tmp_path / "run.pack").config["teacher"] == ["one", "two"]


@pytest.mark.parametrize(("changes", "found"), [
    ({"split_seed": 7}, "one, on others"),
    ({"teacher": ("nowhere",)}, "no such folder"),
    ({"ngram_smoothing": 0.1}, "both"),
    ({"ngram_items": 0.1}, "both"),
    ({"mode": "text", "block_size": 8}, "no effect with --mode text"),
    ({"teacher": ("many",) * 10}, "10"),
])  # fmt: skip
def test_what_cannot_teach_is_refused_before_anything_is_written(
    teachers: tuple[str, ...], tmp_path: Path, changes: dict[str, object], found: str
) -> None:
    with pytest.raises(FlashmoreError, match=found):
        train(replace(SMALL, **{"teacher": teachers, **changes}), tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_an_unfinished_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(SMALL, tmp_path / "one", PressCtrlC())
    with pytest.raises(RunError, match="unfinished"):
        train(replace(SMALL, teacher=(str(tmp_path / "one"),)), tmp_path / "run")


def test_weighted_items_have_no_teachers(teachers: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--weight"):
        TrainConfig(file=Path("list.csv"), column="name", weight="count", teacher=teachers)


def test_random_splits_have_no_common_teachers() -> None:
    with pytest.raises(ConfigError, match="one and the same split"):
        require_random_splits(replace(SMALL, teacher=("one",)), 3)


# Teachers that are trained first.


def test_teachers_that_are_trained_first_are_runs_beside_the_run(tmp_path: Path) -> None:
    config = replace(SMALL, max_steps=16, eval_interval=8)
    train(replace(config, teachers=2), tmp_path / "run")
    made = [Run.open(tmp_path / name) for name in ("run-teacher-1", "run-teacher-2")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-teacher-1", "run-teacher-2"]
    assert [run.config["max_steps"] for run in made] == [10, 10]
    starts = [build(run.model, run.config["seed"]) for run in (*made, Run.open(tmp_path / "run"))]
    assert len({start.get_parameter("wte.weight").sum().item() for start in starts}) == 3
    train(replace(config, teacher=tuple(str(run.path) for run in made)), tmp_path / "same")
    same, run = (load_file(max((tmp_path / name).glob("step-*"))) for name in ("same", "run"))
    assert all(torch.equal(same[name], run[name]) for name in same)


def test_the_same_command_goes_on_with_interrupted_teachers(tmp_path: Path) -> None:
    config = replace(SMALL, max_steps=16, eval_interval=8, teachers=2)
    train(config, tmp_path / "whole" / "run")
    told = []
    for _ in range(3):  # each run is interrupted once
        with pytest.raises(Interrupted) as error:
            train(config, tmp_path / "run", PressCtrlC())
        told.append(error.value.valid)
    assert ["Repeat the command" in each for each in told] == [True, True, False]
    train(config, tmp_path / "run", PressCtrlC())
    whole, run = (load_file(max((tmp_path / name).glob("step-*"))) for name in ("whole/run", "run"))
    assert all(torch.equal(whole[name], run[name]) for name in whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "run",
        "run-teacher-1",
        "run-teacher-2",
        "whole",
    ]


@pytest.mark.parametrize("out", ["run-teacher-1", "."])
def test_the_folder_of_a_run_with_teachers_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = train(replace(SMALL, max_steps=2, eval_interval=2, teachers=1), out)
    assert Run.open(result.run).settings.teachers


def test_without_a_folder_the_interrupted_command_tells_which_one_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(SMALL, max_steps=16, eval_interval=8, teachers=1)
    with pytest.raises(Interrupted) as error:
        train(config, None, PressCtrlC())
    (folder,) = re.findall("--out (runs/\\S+) to go on", error.value.valid)
    other = train(replace(config, seed=5, max_steps=2, eval_interval=2))  # is not in the way of the first
    assert other.run != folder
    assert train(config, folder).run == folder


def test_no_teacher_is_trained_for_items_that_cannot_have_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashmore.training.corpus.MOST_SMOOTHED", 100)
    with pytest.raises(ConfigError, match="--teachers 0"):
        train(replace(SMALL, teachers=1), tmp_path / "run")
    assert not [*tmp_path.iterdir()]


def test_no_teacher_is_trained_for_a_folder_that_is_in_use(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(RunError, match="exclusive"):
        train(replace(SMALL, teachers=1), tmp_path / "run")
    assert not [*tmp_path.glob("run-teacher*")]


def test_folders_that_cannot_be_read_are_no_run_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = train(replace(SMALL, max_steps=2, eval_interval=2))
    for checkpoint in Path(first.run).glob("step-*"):
        checkpoint.unlink()
    second = train(replace(SMALL, max_steps=2, eval_interval=2), again=True)
    assert second.run != first.run


@pytest.mark.parametrize(("changes", "teachers"), [
    ({}, 3),
    ({"teachers": 0}, 0),
    ({"teacher": ("runs/one",)}, 0),
    ({"column": "name", "weight": "count"}, 0),
    ({"preset": "names"}, 0),
])  # fmt: skip
def test_names_long_learns_from_three_teachers_where_it_can(
    tmp_path: Path, changes: dict[str, object], teachers: int
) -> None:
    path = tmp_path / "list.csv"
    lines = [f"{'abc'[number % 3] * (1 + number // 3)},{number + 1}" for number in range(30)]
    path.write_text("\n".join(["name,count", *lines]))
    config = TrainConfig(**{"file": path, "column": "name", "preset": "names-long", **changes})  # type: ignore[arg-type]
    fitted, notes = fit(config, read_corpus(config))
    assert fitted.teachers == teachers
    distilled = teachers or config.teacher
    assert fitted.dropout == (0.2 if config.preset == "names" else 0.0 if distilled else 0.1)
    assert (fitted.ngram_smoothing > 0) == (not distilled and config.weight is None)
    assert ("teachers 3" in notes[0]) == (teachers == 3)


@pytest.mark.parametrize(("changes", "found"), [
    ({"file": Path("-")}, "stdin"),
    ({"column": "name", "weight": "count"}, "both"),
    ({"teacher": ("one",)}, "both"),
    ({"teachers": 10}, "10"),
    ({"mode": "text"}, "no effect with --mode text"),
])  # fmt: skip
def test_where_no_teachers_can_be_trained_they_are_refused(changes: dict[str, object], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        TrainConfig(**{"teachers": 2, **changes})  # type: ignore[arg-type]
