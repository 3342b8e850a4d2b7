"""The same options come to the same run in Python and on the command line."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from flashmore import TrainConfig, train
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
        assert (preset, models()[model].muon) == ("names-long", False)
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
    first, second = (load_file(run.path / "best.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="shakespeare-fast") as refused:
        TrainConfig(preset="fast")  # type: ignore[arg-type]
    assert "'fast'" in refused.value.found
