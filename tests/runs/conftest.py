import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from flashmore.data.split import Split
from flashmore.data.vocabulary import Vocabulary
from flashmore.models.config import ModelConfig
from flashmore.runs import Checkpoint, Run

MakeRun = Callable[[Path], Run]
MakeCheckpoint = Callable[..., Checkpoint]

SPLIT = Split(train=("anna", "zoë", "ab cd"), validation=("ben",), test=("anna",), leak_share=1.0)


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """Makes a run in a folder."""
    vocabulary = Vocabulary.from_items(SPLIT.train + SPLIT.validation)
    model = ModelConfig(model="bigram", vocabulary_size=vocabulary.size, context=8, dropout=0.5)
    recipe = {"steps": 10, "lr": 5e-4, "file": None, "betas": (0.9, 0.99)}
    return lambda path: Run.create(path, recipe, model, vocabulary, SPLIT)


@pytest.fixture(scope="session")
def make_checkpoint() -> MakeCheckpoint:
    """Makes a checkpoint that holds its step in each of its parts."""

    def make(step: int, size: int = 4) -> Checkpoint:
        values = torch.full((size,), float(step))
        optimizer = {"state": {0: {"exp_avg": values}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        return Checkpoint({"values": values}, optimizer, {"step": step, "best": None})

    return make


@pytest.fixture(scope="session")
def step_of() -> Callable[[Checkpoint], int]:
    """Reads the step from every part of a checkpoint, which must agree."""

    def read(checkpoint: Checkpoint) -> int:
        step = checkpoint.state["step"]
        assert set(checkpoint.weights["values"].tolist()) == {step}
        assert set(checkpoint.optimizer["state"][0]["exp_avg"].tolist()) == {step}
        assert isinstance(step, int)
        return step

    return read


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("a small disk: there is no `mount` here")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk: mounting is not permitted here ({done.stderr.strip()})")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)
