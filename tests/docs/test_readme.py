"""What the README tells people to type works, and prints what the README says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
BRANDS = """Acme Acorn Actis Adobe Agfa Aldi Alfa Amway Apple Arco Argos Asics Aston Atari Audi Avia Avis Avon
Bayer Bosch Canon Casio Chanel Cisco Citroen Dacia Danone Dell Duracell Epson Ericsson Esso Fanta Fiat Fila
Garmin Gucci Haribo Honda Ikea Intel Jaguar Kodak Lego Lexus Mazda Milka Nestle Nikon Nissan Nokia Reference
Pepsi Philips Puma Renault Rolex Samsung Seat Sharp Shell Siemens Skoda Sony Suzuki Tesla Toyota Visa Volvo
Xerox Yamaha Zara"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readme")
    (path / "brands.txt").write_text(BRANDS.replace(" ", "\n"), encoding="utf-8")
    return path


def commands() -> list[tuple[str, str]]:
    """Each command of the README's console blocks, with the output that stands below it."""
    found = []
    for block in CONSOLE:
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return [(command, output) for command, output in found if command.startswith("flashmore ")]


def test_the_readme_shows_commands() -> None:
    verbs = {command.split()[1] for command, _ in commands()}
    assert verbs == {"look", "train", "generate", "score", "compare", "explain", "choose", "speedups"}
    assert "$ make demo" in README


@pytest.mark.parametrize(("command", "output"), commands(), ids=lambda value: value.split("\n")[0][:60])
def test_a_command_of_the_readme_works(command: str, output: str, folder: Path) -> None:
    words = [sys.executable, "-m", "flashmore", *command.split()[1:]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    refused = output.startswith("wanted:")
    assert done.returncode == (2 if refused else 0), done.stderr
    assert output.strip() in (done.stderr if refused else done.stdout)


def test_the_pictures_and_runs_of_the_readme_are_there(folder: Path) -> None:
    assert (folder / "models.png").stat().st_size > 1000
    assert (folder / "runs" / "brands" / "best.safetensors").is_file()


def test_the_python_of_the_readme_works(folder: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[0]) > 0


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_tree_of_the_readme_is_the_tree() -> None:
    source = ROOT / "src" / "flashmore"
    packages = {path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert packages == set(re.findall(r"^  (\w+)/ ", README, re.MULTILINE))
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
