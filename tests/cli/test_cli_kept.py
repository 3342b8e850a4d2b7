"""What is kept of a run is found again: --resume auto, `flashmore runs`, `flashmore verify`."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flashmore.config import TrainConfig
from flashmore.errors import Interrupted
from flashmore.runs import Checkpoint, Run, checkpoint, locked
from flashmore.training.folders import runs_in
from flashmore.training.loop import Observer, train
from flashmore.training.verify import verify
from forks import Forks

Call = Callable[..., CompletedProcess[str]]
Refusal = Callable[..., str]
Document = Callable[..., Any]


@pytest.fixture
def quick_words(names_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """A quick training in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return "train", names_file, "--model", "bigram", "--max-steps", 6, "--device", "cpu", "--resume", "auto"


def interrupt(config: TrainConfig, out: Path | None = None) -> None:
    class PressCtrlC(Observer):
        def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(config, out, PressCtrlC())


def test_auto_begins_a_run_goes_on_with_it_and_tells_when_it_is_finished(
    quick_words: tuple[object, ...], names_file: Path, document: Document, call: Call
) -> None:
    words = TrainConfig(file=names_file, model="bigram", max_steps=6, device="cpu")
    train(replace(words, seed=9))  # runs/bigram, of another command
    assert document(*quick_words)["run"] == "runs/bigram-2"
    (Path("runs") / "other").mkdir()
    interrupt(replace(words, log_interval=1))  # runs/bigram-3
    interrupt(replace(words, log_interval=1))  # runs/bigram-4, which is newer
    for name in ("runs/bigram-4", "runs/bigram-3", "runs/bigram-3"):
        assert document(*quick_words, "--log-interval", 1)["run"] == name
    told = call(*quick_words).stderr.splitlines()
    assert "runs/bigram-2 is finished; to train it longer: flashmore train --resume runs/bigram-2" in told[0]
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        "bigram", "bigram-2", "bigram-3", "bigram-4", "other",
    ]  # fmt: skip


def test_auto_with_a_folder_is_the_repeated_command(
    quick_words: tuple[object, ...], document: Document, call: Call, refusal: Refusal, tmp_path: Path
) -> None:
    first = document(*quick_words, "--out", "auto")
    assert document(*quick_words, "--out", "auto")["test_loss"] == first["test_loss"]
    assert "a run with seed" in refusal(call(*quick_words, "--out", "auto", "--seed", 5), 2)
    assert document("train", "--resume", "./auto", "--max-steps", 8)["steps"] == 8


def test_auto_refuses_further_splits(quick_words: tuple[object, ...], call: Call, refusal: Refusal) -> None:
    assert "--splits 2, whose other runs are not kept" in refusal(call(*quick_words, "--splits", 2), 2)


def test_interrupted_splits_say_how_to_go_on(
    names_file: Path, tmp_path: Path, environment: dict[str, str], forks: Forks
) -> None:
    words = ("train", names_file, "--model", "bigram", "--device", "cpu", "--splits", 2, "--out", "run")
    long = ("--max-steps", 1_000_000, "--patience", 0, "--log-interval", 1, "--speedups", "none")
    metrics = tmp_path / "run" / "metrics.jsonl"
    with Path(os.devnull).open() as nothing, TemporaryFile() as err:
        streams = (nothing.fileno(), err.fileno(), err.fileno())
        running = forks.start(("-m", "flashmore", *words, *long), environment, streams, tmp_path)
        while not (metrics.exists() and metrics.stat().st_size):
            assert not running.ended(0.02)
        os.kill(running.pid, signal.SIGINT)
        assert running.wait() == 130
        err.seek(0)
        told = err.read().decode()
    assert "flashmore train --resume run; then repeat the command with that run as --out" in told


def test_an_intact_run_is_verified(trained: Path, document: Document, call: Call, tmp_path: Path) -> None:
    found = document("verify", trained)
    assert all(each["problem"] is None for each in found)
    assert {each["file"] for each in found} == {
        path.name for path in trained.iterdir() if path.name != "run.lock"
    }
    assert call("verify", trained).stdout.splitlines() == [f"{each['file']}: ok" for each in found]
    assert call("pack", trained, "--out", tmp_path / "x.pack").returncode == 0
    assert all(each["problem"] is None for each in document("verify", tmp_path / "x.pack"))


def flip(path: Path, at: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name",
    ["config.json", "vocabulary.json", "split.json", "oldest", "newest", "metrics.jsonl", "result.json"],
)
def test_one_damaged_bit_is_found_in_its_file(trained: Path, name: str, call: Call, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    checkpoints = sorted((tmp_path / "run").glob("step-*"))
    path = {"oldest": checkpoints[0], "newest": checkpoints[-1]}.get(name, tmp_path / "run" / name)
    flip(path)
    done = call("verify", tmp_path / "run")
    assert done.returncode == 1
    bad = [line for line in done.stdout.splitlines() if not line.endswith(": ok")]
    assert [line.partition(":")[0] for line in bad] == [path.name]


def test_values_and_files_that_no_checksum_protects_are_found(
    trained: Path, call: Call, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    state = run.load_state()
    tensors = load_file(run.checkpoint(state.step))
    weights, optimizer = (
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in ("weights.", "optimizer.")
    )
    moment = next(name for name in optimizer if name.startswith("exp_avg."))
    assert state.best_step is not None
    for change, told in (
        ({moment: torch.full_like(optimizer[moment], torch.nan)}, f"NaN or infinities in {moment}"),
        ({moment: optimizer[moment].flatten()[1:]}, f"{moment} of ("),
    ):
        run.save_checkpoint(Checkpoint(weights, optimizer | change, state))
        assert told in call("verify", run.path).stdout
    run.save_checkpoint(Checkpoint(weights, optimizer, state))
    run.checkpoint(state.best_step).unlink()
    assert f"{run.checkpoint(state.best_step).name}: missing" in call("verify", run.path).stdout


@pytest.mark.parametrize("new_steps", [1, 2])
@pytest.mark.parametrize("read_before", [0, 2])
def test_checkpoints_that_training_removes_while_they_are_verified_are_not_missing(
    read_before: int, new_steps: int, unfinished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(unfinished, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    state = replace(run.load_state(), best_step=run.steps[0], best_loss=1.0)
    saved = checkpoint.load_all(run.checkpoint(state.step), run.digest)
    run.save_checkpoint(replace(saved, state=state))
    run.save_checkpoint(replace(saved, state=replace(state, step=state.step + 1)))
    before, read = run.steps, checkpoint.load_all

    def overtaken(path: Path, digest: str) -> Checkpoint:
        """Read a checkpoint; before a certain one, training saves new ones."""
        if path == run.checkpoint(before[read_before]):
            for step in range(before[-1] + 1, before[-1] + 1 + new_steps):
                best = replace(state, step=step, best_step=step, best_loss=0.1)
                run.save_checkpoint(replace(saved, state=best))
        return read(path, digest)

    monkeypatch.setattr(checkpoint, "load_all", overtaken)
    found = verify(run.path)
    assert before != run.steps
    assert [each for each in found if each.problem is not None] == []
    assert any(each.file.startswith("step-") for each in found)


def test_a_file_that_is_renamed_while_runs_are_listed_does_not_matter(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "run"
    shutil.copytree(unfinished, run)
    temporary, page, status_of = run / f".page.html.{'0' * 16}.tmp", run / "page.html", os.lstat
    temporary.touch()

    def late(path: Path) -> os.stat_result:
        if path == temporary:
            temporary.rename(page)
        return status_of(path)

    monkeypatch.setattr(os, "lstat", late)
    assert [each.state for each in runs_in(tmp_path / "runs")] == ["unfinished"]
    assert page.exists()


def test_nothing_to_verify_is_refused(call: Call, refusal: Refusal, tmp_path: Path) -> None:
    assert "no such folder" in refusal(call("verify", tmp_path / "nowhere"), 2)
    assert "without config.json" in refusal(call("verify", tmp_path), 2)
    assert "no such folder" in refusal(call("runs", tmp_path / "nowhere"), 2)
    (tmp_path / "file").touch()
    assert "a file" in refusal(call("runs", tmp_path / "file"), 2)


def test_runs_are_listed_with_their_states(
    config: TrainConfig, trained: Path, unfinished: Path, document: Document, call: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    for name in ("a-finished", "c-damaged", "e-goes-on"):
        shutil.copytree(trained, folder / name)
    shutil.copytree(unfinished, folder / "b-unfinished")
    for path in (folder / "c-damaged").glob("step-*"):
        flip(path)
    flip(Run.open(folder / "e-goes-on").checkpoint(60))
    (folder / "not a run").mkdir()
    (folder / "notes.txt").touch()
    assert call("pack", trained, "--out", folder / "d.pack").returncode == 0
    with locked(folder / "b-unfinished"):
        found = {Path(each["run"]).name: each for each in document("runs", folder)}
    assert {name: each["state"] for name, each in found.items()} == {
        "a-finished": "finished",
        "b-unfinished": "training",
        "c-damaged": "damaged",
        "d.pack": "packed",
        "e-goes-on": "unfinished",
    }
    assert f"process {os.getpid()} on " in found["b-unfinished"]["detail"]
    finished = found["a-finished"]
    assert (finished["model"], finished["data"]) == ("mlp", "names.txt")
    assert (finished["step"], finished["max_steps"]) == (60, 60)
    result = Run.open(trained).read_result()
    assert result is not None
    assert (finished["val_loss"], finished["test_loss"]) == (result["val_loss"], result["test_loss"])
    assert found["e-goes-on"]["step"] == 40
    done = call("runs", folder)
    lines = done.stdout.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert lines[-1].startswith(f"{folder / 'c-damaged'}: damaged, step-000000")
    assert "e-goes-on is damaged (step-000000060.safetensors: " in done.stderr


def test_a_long_name_is_listed_in_one_piece(unfinished: Path, call: Call, tmp_path: Path) -> None:
    shutil.copytree(unfinished, tmp_path / "a-run-with-a-longer-name")
    shown = call("runs", tmp_path).stdout
    assert "a-run-with-a-longer-name │" in shown
    assert "names.txt" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_folder_without_runs_says_so(call: Call, tmp_path: Path) -> None:
    assert call("runs", tmp_path).stdout == f"no runs in {tmp_path}\n"
