"""The commands of docs/input.md work on the files that it describes, and print what stands below them."""

import re
import shlex
from pathlib import Path

import pytest

from flashmore.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "input.md").read_text(encoding="utf-8")
COMMANDS = [
    part.partition("\n")[::2]
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for part in re.split(r"^\$ flashmore ", block, flags=re.MULTILINE)[1:]
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input")
    (csv,) = re.findall(r"```csv\n(.*?)```", PAGE, re.DOTALL)
    (path / "names.csv").write_text(csv, encoding="utf-8")
    (path / "latin.txt").write_bytes("Anna\nJosé\nBob\n".encode("latin-1"))
    return path


@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_a_command_of_the_page_works(
    command: str,
    output: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    refused = output.startswith("wanted:")
    assert main(shlex.split(command)) == (2 if refused else 0)
    assert output.strip() in capsys.readouterr().err
