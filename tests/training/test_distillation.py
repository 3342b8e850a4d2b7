"""Runs that learn from other runs: what they are taught, resuming without the teachers, refusals."""

import os
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
from flashmore.runs import Run
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
    data = corpus.parts(config, torch.device("cpu"), teachers=runs).train
    models = [load_model(run, "cpu") for run in runs]
    batch = data.batch(3)
    with torch.inference_mode():
        mean = (models[0](batch.ids).softmax(-1) + models[1](batch.ids).softmax(-1)) / 2
    real = batch.targets != IGNORE
    assert batch.smooth is not None
    torch.testing.assert_close(batch.smooth[real], mean[real], rtol=1e-5, atol=1e-6)
    assert not batch.smooth[~real].any()


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
