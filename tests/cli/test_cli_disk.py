"""A disk that is full: a message, exit code 1, and every file whole or absent."""

import gc
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import load_file

from flashmore.config import TrainConfig
from flashmore.training.loop import train

Call = Callable[..., CompletedProcess[str]]
Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield disk
    finally:
        gc.collect()  # an exception that is still around may hold a file open
        subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> None:
    try:
        with (disk / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        pass


def test_a_run_that_no_disk_has_room_for_leaves_nothing(
    quick: tuple[object, ...], call: Call, refusal: Callable[..., str], small_disk: Path
) -> None:
    fill(small_disk)
    assert "free space" in refusal(call(*quick, "--out", small_disk / "new" / "run"), 1)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_checkpoint_that_the_disk_has_no_room_for_leaves_no_part_of_itself(
    config: TrainConfig, process: Call, refusal: Callable[..., str], small_disk: Path
) -> None:
    words = ("train", config.file, "--model", "transformer", "--attention", "manual", "--device", "cpu")
    done = process(*words, "--max-steps", 6, "--eval-interval", 3, "--out", small_disk / "run")
    assert "No space left" in refusal(done, 1, after_progress=True)
    assert done.stdout == ""
    assert not [path for path in small_disk.rglob("*") if path.suffix == ".tmp"]


def test_a_disk_that_fills_up_costs_neither_checkpoint_nor_log_and_room_lets_it_go_on(
    config: TrainConfig,
    call: Call,
    document: Callable[..., dict[str, object]],
    refusal: Callable[..., str],
    contents: Contents,
    small_disk: Path,
    tmp_path: Path,
) -> None:
    run = small_disk / "run"
    config = replace(config, model="bigram", max_steps=10, eval_interval=5, log_interval=1)
    train(config, run)
    before = {name: data for name, data in contents(run).items() if not name.startswith("events.")}
    fill(small_disk)
    # Metrics may still fit into the last block of their file; a checkpoint of new files never does.
    message = refusal(call("train", "--resume", run, "--max-steps", 200), 1, after_progress=True)
    assert "free space" in message
    for name, data in before.items():
        assert (run / name).read_bytes().startswith(data)
    assert all(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())

    (small_disk / "filler").unlink()
    document("train", "--resume", run, "--max-steps", 200)
    train(config, tmp_path / "whole")
    document("train", "--resume", tmp_path / "whole", "--max-steps", 200)
    first, second = (load_file(max(home.glob("step-*"))) for home in (run, tmp_path / "whole"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_picture_that_the_disk_has_no_room_for_leaves_the_one_before(
    trained: Path, call: Call, refusal: Callable[..., str], small_disk: Path
) -> None:
    picture = small_disk / "names.png"
    assert call("compare", trained, "--picture", picture).returncode == 0
    before = picture.read_bytes()
    fill(small_disk)
    done = call("compare", trained, "--picture", picture, "--count", 30)
    assert "free space" in refusal(done, 1, after_progress=True)
    assert "test loss" in done.stdout
    assert picture.read_bytes() == before
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "names.png"]
