import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from flashmore.data.items import Split
from flashmore.data.vocabulary import Vocabulary
from flashmore.models.config import ModelConfig
from flashmore.models.registry import layout
from flashmore.runs import Checkpoint, Run, Settings, State, locked

MakeRun = Callable[..., Run]
MakeCheckpoint = Callable[..., Checkpoint]

SPLIT = Split(train=("anna", "zoë", "ab cd"), validation=("ben",), test=("anna",), leak_share=1.0)
VOCABULARY = Vocabulary.from_items(SPLIT.train + SPLIT.validation)
CONFIG = {"max_steps": 10, "learning_rate": 5e-4, "file": None, "speedups": ["none"]}


def settings_of(channels: int) -> Settings:
    model = ModelConfig(model="bow", vocab_size=VOCABULARY.size, block_size=6, n_embd=channels, dropout=0.5)
    versions = {"flashmore": "0", "torch": str(torch.__version__)}
    return Settings(CONFIG, CONFIG, model, VOCABULARY, SPLIT, None, versions)


def checkpoint_of(step: int, channels: int = 4) -> Checkpoint:
    """A checkpoint that holds its step in each of its parts."""
    sizes = layout(settings_of(channels).model)
    weights = {name: torch.full(shape, float(step), dtype=dtype) for name, (shape, dtype) in sizes.items()}
    return Checkpoint(weights, {"exp_avg": torch.full((channels,), float(step))}, State(step, 10**6))


@pytest.fixture(scope="session")
def make_checkpoint() -> MakeCheckpoint:
    return checkpoint_of


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """Makes a run of step 0 in a folder."""

    def make(path: Path, channels: int = 4) -> Run:
        with locked(path), Run.create(path, settings_of(channels)) as run:
            run.begin(checkpoint_of(0, channels))
        return Run.open(path)

    return make


@pytest.fixture(scope="session")
def step_of() -> Callable[[Run], int]:
    """Reads the step of `last` from every part of it, which must agree."""

    def read(run: Run) -> int:
        shape = (run.model.n_embd,)
        checkpoint = run.load_checkpoint({"exp_avg": (shape, torch.float32)})
        step = checkpoint.state.step
        for tensors in (checkpoint.weights, checkpoint.optimizer):
            assert {value for tensor in tensors.values() for value in tensor.flatten().tolist()} == {step}
        return step

    return read


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path) -> Run:
    return make_run(tmp_path / "run")


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder, to see that nothing was lost or left."""
    return lambda folder: {
        entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name != "run.lock"
    }


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


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
