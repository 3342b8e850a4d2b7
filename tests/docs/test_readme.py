"""What the README tells people to type works, and prints what the README says."""

import os
import re
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from flashmore.cli.main import main
from forks import Forks

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
BRANDS = """Acme Acorn Actis Adobe Agfa Aldi Alfa Amway Apple Arco Argos Asics Aston Atari Audi Avia Avis Avon
Bayer Bosch Canon Casio Chanel Cisco Citroen Dacia Danone Dell Duracell Epson Ericsson Esso Fanta Fiat Fila
Garmin Gucci Haribo Honda Ikea Intel Jaguar Kodak Lego Lexus Mazda Milka Nestle Nikon Nissan Nokia Reference
Pepsi Philips Puma Renault Rolex Samsung Seat Sharp Shell Siemens Skoda Sony Suzuki Tesla Toyota Visa Volvo
Xerox Yamaha Zara"""


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readme")
    (path / "brands.txt").write_text(BRANDS.replace(" ", "\n"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def typed(folder: Path) -> dict[str, tuple[int, str]]:
    """The exit code of each command, typed in the order of the page, and what it printed or complained of."""
    ended = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for command, output in commands():
            with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
                code = main(command.split()[1:])
            ended[command] = code, (err if output.startswith("wanted:") else out).getvalue()
    return ended


@pytest.mark.parametrize(("command", "output"), commands(), ids=lambda value: value.split("\n")[0][:60])
def test_a_command_of_the_readme_works(command: str, output: str, typed: dict[str, tuple[int, str]]) -> None:
    code, text = typed[command]
    assert code == (2 if output.startswith("wanted:") else 0), text
    assert output.strip() in text


@pytest.mark.usefixtures("typed")
def test_the_pictures_and_runs_of_the_readme_are_there(folder: Path) -> None:
    assert (folder / "models.png").stat().st_size > 1000
    assert list((folder / "runs" / "brands").glob("step-*.safetensors"))


@pytest.mark.usefixtures("typed")  # whose run it reads
def test_the_python_of_the_readme_works(folder: Path, forks: Forks) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (folder / "program.py").write_text(block, encoding="utf-8")
    done = forks.run((folder / "program.py",), os.environ, folder)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[0]) > 0


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_tree_in_the_architecture_is_the_tree() -> None:
    source = ROOT / "src" / "flashmore"
    packages = {path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith("_")}
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert packages == set(re.findall(r"^  (\w+)/ ", architecture, re.MULTILINE))
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
