"""docs/generating.md names every option, and its commands work on a run of the built-in names."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from flashmore.cli.main import main
from flashmore.config import TrainConfig
from flashmore.generation.options import GenerateOptions
from flashmore.training.loop import train

PAGE = (Path(__file__).parents[2] / "docs" / "generating.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:\$ )?flashmore (generate .+?)(?: +#.*)?$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generating") / "names"
    train(TrainConfig(model="bigram", max_steps=200, device="cpu"), path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_works(command: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run) if word in ("RUN", "runs/names") else word for word in shlex.split(command)]
    found_too_few = "--like" in words  # a Bigram has few names like a given one
    assert main(words) in ((0, 1) if found_too_few else (0,)), capsys.readouterr().err


def test_every_option_for_names_alone_is_on_the_page() -> None:
    assert len(COMMANDS) == 8
    for field in fields(GenerateOptions):
        if field.name not in ("temperature", "top_k", "top_p"):
            assert f"--{field.name.replace('_', '-')}" in PAGE
