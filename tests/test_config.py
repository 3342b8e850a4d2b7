"""The same options come to the same run in Python and on the command line."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from flashmore import TrainConfig, resume, train
from flashmore.cli.main import main
from flashmore.cli.parse import defaults, parse
from flashmore.cli.train import Train
from flashmore.config import PRESETS, Preset
from flashmore.errors import ConfigError
from flashmore.runs import Run
from flashmore.specs import Model, models


def parsed(*words: str) -> TrainConfig:
    return parse(Train, "train", words, Train(defaults(words))).config


def test_every_preset_has_values() -> None:
    assert set(PRESETS) == set(get_args(Preset))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", models())
def test_defaults_are_the_same_in_python_and_on_the_command_line(model: Model, preset: Preset) -> None:
    try:
        config = TrainConfig(model=model, preset=preset)
    except ConfigError as error:
        assert preset in ("names-long", "shakespeare-fast")
        assert not models()[model].muon
        with pytest.raises(ConfigError, match=error.found):
            parsed("--model", model, "--preset", preset)
        return
    assert parsed("--model", model, "--preset", preset) == config
    changed = TrainConfig(model=model, preset=preset, max_steps=7, learning_rate=0.25)
    assert (
        parsed("--model", model, "--preset", preset, "--max-steps", "7", "--learning-rate", "0.25") == changed
    )


def test_the_same_options_train_the_same_weights(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(("anna", "bella", "carla", "dora", "eva", "fiona")), encoding="utf-8")
    config = TrainConfig(file=names, n_layer=1, n_embd=16, max_steps=6, device="cpu", attention="manual")
    train(config, tmp_path / "python")
    words = "--n-layer 1 --n-embd 16 --max-steps 6 --device cpu --attention manual"
    assert main(["train", str(names), *words.split(), "--out", str(tmp_path / "line"), "--json"]) == 0
    one, other = (Run.open(tmp_path / name) for name in ("python", "line"))
    assert one.settings.requested == other.settings.requested
    assert one.config == other.config
    first, second = (run.load_weights() for run in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="shakespeare-fast") as refused:
        TrainConfig(preset="fast")  # type: ignore[arg-type]
    assert "'fast'" in refused.value.found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", "8"),
        ("max_steps", 6.0),
        ("n_layer", True),
        ("seed", None),
        ("bias", "no"),
        ("optimizer", "sgd"),
        ("lr_schedule", "linear"),
        ("decay_on", "none"),
        ("mode", "txt"),
        ("dtype", "bf16"),
        ("device", "cuda:0"),
        ("model", ["mlp"]),
        ("preset", None),
        ("split", (80, 10, 10)),
        ("speedups", None),
        ("encoding", None),
        ("file", 3),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_would_be_valid(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name) as refused:
        TrainConfig(**{name: value})  # type: ignore[arg-type]
    assert repr(value) in refused.value.found


def test_strings_lists_and_whole_numbers_are_what_they_stand_for() -> None:
    config = TrainConfig(file="names.txt", speedups="none", learning_rate=1)  # type: ignore[arg-type]
    assert config == TrainConfig(file=Path("names.txt"), speedups=("none",), learning_rate=1.0)
    assert TrainConfig(speedups=["pack"]).speedups == ("pack",)  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["shakespeare", "gpt2-124m"])
def test_a_preset_for_text_refuses_items(preset: Preset) -> None:
    with pytest.raises(ConfigError, match=f"--preset {preset}"):
        TrainConfig(preset=preset, mode="items")


def test_a_preset_for_items_refuses_a_text() -> None:
    with pytest.raises(ConfigError, match="--preset names-long"):
        TrainConfig(preset="names-long", mode="text")


def test_a_run_is_trained_and_resumed_by_paths_as_strings(tmp_path: Path) -> None:
    names, run = tmp_path / "names.txt", str(tmp_path / "run")
    names.write_text("anna\nbella\ncarla\n", encoding="utf-8")
    config = TrainConfig(file=str(names), model="bigram", max_steps=2, device="cpu", split="100/0/0")  # type: ignore[arg-type]
    assert train(config, run).steps == 2
    assert resume(run, 4).steps == 4
    with pytest.raises(ConfigError, match="a whole number"):
        resume(run, 6.0)  # type: ignore[arg-type]
    assert resume(run, 5).steps == 5
