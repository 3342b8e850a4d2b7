"""A run whose process is killed at any moment goes on with the same command, to the same weights."""

import os
import random
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from shlex import split

import pytest
import torch
from safetensors.torch import load_file

from jobs import Job, Jobs, Outcome

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
SYLLABLES = ("an", "be", "cor", "dal", "na", "lo")
NAMES = "\n".join(map("".join, product(SYLLABLES, repeat=3)))
TRAIN = split(
    "train names.txt --out run --device cpu --dropout 0.1 --model mlp --n-embd 8 --batch-size 4 "
    "--log-interval 1 --speedups none --max-steps 60 --eval-interval 7"
)
DEFAULTS = split("train names.txt --out run")


def folder_at(path: Path) -> Path:
    path.mkdir()
    (path / "names.txt").write_text(NAMES)
    return path


def train(jobs: Jobs, folder: Path, words: Sequence[str], **kill: float | int) -> Outcome:
    return jobs.run(Job((tuple(words),), str(folder), **kill))  # type: ignore[arg-type]


def require_same_end(jobs: Jobs, folder: Path, whole: Path, words: Sequence[str]) -> None:
    """The same command goes on, to the same tensors, and leaves nothing of the one that was killed."""
    again = train(jobs, folder, words)
    assert (again.codes, again.signal) == ((0,), 0), again.text
    for wanted, found in zip(*(sorted(path.glob("run/step-*")) for path in (whole, folder)), strict=True):
        assert wanted.name == found.name
        first, second = load_file(wanted), load_file(found)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    lines = [path.joinpath("run", "metrics.jsonl").read_text().count("\n") for path in (whole, folder)]
    assert lines[0] == lines[1]
    left = {path.name for path in (folder / "run").iterdir() if not path.name.startswith("events.")}
    assert left == {path.name for path in (whole / "run").iterdir() if not path.name.startswith("events.")}


def kill_at_operations(jobs: Jobs, tmp_path: Path, every: int) -> int:
    words = (*TRAIN, "--max-steps", "4", "--eval-interval", "2")
    whole = folder_at(tmp_path / "whole")
    operations = train(jobs, whole, words).operations
    assert operations > 100
    for number in range(0, operations, every):
        folder = folder_at(tmp_path / "cut")
        killed = train(jobs, folder, words, kill_at=number)
        assert killed.signal == 9, f"operation {number}: {killed.text}"
        require_same_end(jobs, folder, whole, words)
        shutil.rmtree(folder)
    return operations


def kill_at_random(jobs: Jobs, tmp_path: Path, times: int, words: Sequence[str] = TRAIN) -> None:
    whole = folder_at(tmp_path / "whole")
    seconds = train(jobs, whole, words).cpu_s
    chance, killed = random.Random(1), 0
    for number in range(times):
        folder = folder_at(tmp_path / f"cut {number}")
        for _ in range(chance.choice((1, 1, 2, 3))):
            killed += train(jobs, folder, words, kill_after_s=chance.uniform(0, seconds)).signal == 9
        require_same_end(jobs, folder, whole, words)
        shutil.rmtree(folder)
    assert killed >= times / 2, "most of them must have been killed before they ended"


def test_a_run_killed_at_some_file_operations_goes_on(jobs: Jobs, tmp_path: Path) -> None:
    kill_at_operations(jobs, tmp_path, every=97)


@pytest.mark.faults
def test_a_run_killed_at_every_file_operation_goes_on(jobs: Jobs, tmp_path: Path) -> None:
    assert kill_at_operations(jobs, tmp_path, every=1) > 100


def test_a_run_killed_at_random_moments_goes_on(jobs: Jobs, tmp_path: Path) -> None:
    kill_at_random(jobs, tmp_path, times=3)


@pytest.mark.faults
def test_a_run_killed_at_200_random_moments_goes_on(jobs: Jobs, tmp_path: Path) -> None:
    kill_at_random(jobs, tmp_path, times=200)


@pytest.mark.faults
def test_a_run_with_the_defaults_killed_at_200_random_moments_goes_on(jobs: Jobs, tmp_path: Path) -> None:
    kill_at_random(jobs, tmp_path, times=200, words=DEFAULTS)
