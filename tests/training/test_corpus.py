"""A run keeps the items that it was given, from wherever they came."""

import io
import sys
from pathlib import Path

import pytest

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, RunError
from flashmore.runs import Run
from flashmore.training.corpus import read_corpus
from flashmore.training.loop import resume, train


def give(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_run_on_stdin_goes_on_without_it_and_repeats_with_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(file=Path("-"), model="bigram", max_steps=2, device="cpu")
    give(b"anna\nbob\ncy\n", monkeypatch)
    train(config, tmp_path / "run")
    assert resume(tmp_path / "run", 3).steps == 3
    give(b"anna\nbob\ncy\n", monkeypatch)
    assert train(config, tmp_path / "run").steps == 3
    give(b"anna\nbob\ndan\n", monkeypatch)
    with pytest.raises(RunError, match="other data"):
        train(config, tmp_path / "run")


def test_the_column_is_an_option_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\nx,1\ny,2\nz,3\n")
    config = TrainConfig(file=tmp_path / "t.csv", column="a", model="bigram", max_steps=1, device="cpu")
    assert read_corpus(config).vocabulary.characters == ("x", "y", "z")
    train(config, tmp_path / "run")
    assert Run.open(tmp_path / "run").config["column"] == "a"
    with pytest.raises(ConfigError, match="--mode text"):
        TrainConfig(file=tmp_path / "t.csv", column="a", mode="text")


def test_items_of_one_character_are_trained_on(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("a\nb\nc\n")
    config = TrainConfig(file=tmp_path / "letters", model="bigram", max_steps=1, device="cpu")
    assert train(config, tmp_path / "run").steps == 1
