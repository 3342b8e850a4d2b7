"""A run keeps the items that it was given, from wherever they came."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flashmore.config import TrainConfig
from flashmore.errors import ConfigError, Interrupted, RunError
from flashmore.generation.sample import score
from flashmore.runs import Run
from flashmore.training import corpus
from flashmore.training.corpus import read_corpus
from flashmore.training.loop import Observer, resume, train


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
    with pytest.raises(RunError, match="different data"):
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


def weighted(folder: Path, weights: Sequence[float]) -> TrainConfig:
    """A small transformer on a list with these weights."""
    items = [f"{a}{b}" for a in "abcdefgh" for b in "mnop"]
    rows = "".join(f"{item},{weight}\n" for item, weight in zip(items, weights, strict=True))
    (folder / "t.csv").write_text(f"a,n\n{rows}")
    return TrainConfig(
        file=folder / "t.csv", column="a", weight="n", n_layer=1, n_embd=16, n_head=2, max_steps=8,
        batch_size=8, eval_interval=4, dropout=0.0, attention="manual", device="cpu",
    )  # fmt: skip


def test_weights_are_kept_with_the_run(tmp_path: Path) -> None:
    config = weighted(tmp_path, [1.5**n for n in range(32)])
    assert train(config, tmp_path / "run").ngram is None, "n-grams count every item once"
    kept = Run.open(tmp_path / "run").split
    assert kept.weights is not None
    read = dict(line.split(",") for line in (tmp_path / "t.csv").read_text().splitlines())
    for name in ("train", "validation", "test"):
        assert [float(read[item]) for item in getattr(kept, name)] == [*getattr(kept.weights, name)]
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("am,1.0\n", "am,2.0\n"))
    with pytest.raises(RunError, match="different data"):
        train(config, tmp_path / "run")


def test_a_weighted_run_that_is_interrupted_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    config = replace(weighted(tmp_path, [1.5**n for n in range(32)]), log_interval=3)

    class PressCtrlC(Observer):
        def stepped(self, step: int, loss: float, step_ms: float, characters_per_s: float) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(config, tmp_path / "stopped", PressCtrlC())
    (tmp_path / "t.csv").rename(tmp_path / "gone")
    resumed = resume(tmp_path / "stopped")
    (tmp_path / "gone").rename(tmp_path / "t.csv")
    assert train(config, tmp_path / "whole").test_loss == resumed.test_loss
    first, second = (load_file(max((tmp_path / name).glob("step-*"))) for name in ("stopped", "whole"))
    assert all(torch.equal(first[name], value) for name, value in second.items())


@pytest.mark.parametrize("speedups", ["none", "trim", "pack", "fused-adamw"])
def test_a_model_learns_the_weights_in_every_form_of_a_batch(speedups: str, tmp_path: Path) -> None:
    """The first letter of the frequent items becomes as likely as their weight says."""
    config = replace(
        weighted(tmp_path, [30.0] * 4 + [1.0] * 28), split="100/0/0", max_steps=150, learning_rate=0.02
    )
    train(replace(config, speedups=(speedups,)), tmp_path / "run")
    names = [f"a{b}" for b in "mnop"]
    share = sum(exp(name.log_prob) for name in score(Run.open(tmp_path / "run"), names))
    assert share == pytest.approx(120 / 148, abs=0.08)


def test_weights_need_a_column_and_different_items(tmp_path: Path) -> None:
    config = weighted(tmp_path, [1.0] * 32)
    with pytest.raises(ConfigError, match="--column with --weight"):
        TrainConfig(file=tmp_path / "t.csv", weight="n")
    with pytest.raises(ConfigError, match="a split by percentages"):
        read_corpus(replace(config, split="makemore"))


def test_how_exact_weighted_losses_are_is_told(tmp_path: Path) -> None:
    (note,) = read_corpus(weighted(tmp_path, [1.0] * 32)).notes
    assert note == "losses are weighted means; effective sample sizes: 26 train, 3 validation, 3 test"


def test_what_may_be_unintended_is_told_in_a_line_each_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [f"{a}{b}" for a in "abcdefgh" for b in "mnop"]
    lines = [*items, "am", "am", "bn", *(item.upper() for item in items), "b\u200bo", "ab" * 30]
    (tmp_path / "list").write_text("\n".join(lines), encoding="utf-8")
    config = TrainConfig(file=tmp_path / "list")
    repeat, alike, odd, far = read_corpus(config).notes
    assert repeat == "items that occur more than once, with 3 extra lines (2): 'am', 'bn'"
    assert "held-out items that equal a training item except for case, accents and spaces (" in alike
    assert odd.startswith("items with control, invisible")
    assert odd.endswith(" (1): 'b\\u200bo'")
    assert "10 times the median; without them the context would be 4, not 61 (1): 'abab" in far
    monkeypatch.setattr(corpus, "EXAMINED", 50)
    assert read_corpus(config).notes == (
        "more than 50 items are not checked for likely mistakes; use `flashmore look`",
    )


def test_an_ordinary_list_and_repeated_items_with_weights_need_no_remark(tmp_path: Path) -> None:
    assert read_corpus(TrainConfig()).notes == ()
    config = weighted(tmp_path, [1.0] * 32)
    with (tmp_path / "t.csv").open("a") as file:
        file.write("am,3\nam,1\n")
    (note,) = read_corpus(config).notes
    assert note.startswith("losses are weighted means")
