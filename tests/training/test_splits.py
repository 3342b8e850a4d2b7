"""The same training on several splits."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from flashmore.cli.main import main
from flashmore.config import TrainConfig
from flashmore.errors import ConfigError
from flashmore.training.loop import train
from flashmore.training.splits import losses_of_splits

NAMES = "\n".join(first + second for first in "bdklmnrst" for second in ("ana", "eli", "ora", "imo"))


def config(folder: Path, **changes: object) -> TrainConfig:
    file = folder / "names.txt"
    file.write_text(NAMES, encoding="utf-8")
    return TrainConfig(file=file, model="bigram", max_steps=20, device="cpu", **changes)  # type: ignore[arg-type]


def test_every_split_is_the_one_of_its_seed(tmp_path: Path) -> None:
    losses = list(losses_of_splits(config(tmp_path, split_seed=5), 3))
    for number, loss in enumerate(losses):
        assert train(config(tmp_path, split_seed=5 + number), tmp_path / str(number)).test_loss == loss
    assert len(set(losses)) == 3


def test_the_command_keeps_the_first_run_and_tells_all_losses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = config(tmp_path)
    words = ["train", str(given.file), "--model", "bigram", "--max-steps", "20", "--device", "cpu"]
    words += ["--splits", "3", "--out", str(tmp_path / "run")]
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert f"split 3 of 3: test loss {told['test_losses'][2]:.4f}" in printed.err
    assert told["test_losses"] == list(losses_of_splits(given, 3))
    assert told["test_loss"] == told["test_losses"][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["names.txt", "run"]


def test_a_seed_without_successors_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--split-seed"):
        next(losses_of_splits(config(tmp_path, split_seed=2**63 - 1), 2))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"split": "makemore"}, "--split makemore"),
        ({"split": "90/10/0"}, "--split 90/10/0"),
        ({"split": "90/10/0.0"}, "--split 90/10/0.0"),
    ],
)
def test_a_split_that_cannot_vary_is_refused(tmp_path: Path, changes: dict[str, object], found: str) -> None:
    with pytest.raises(ConfigError) as refused:
        next(losses_of_splits(config(tmp_path, **changes), 2))
    assert refused.value.found == found


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_refused_before_it_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError) as refused:
        next(losses_of_splits(replace(config(tmp_path), file=pipe), 2))
    assert refused.value.found == f"{pipe}, a pipe or a device, which can be read only once"
