"""The notebooks are what their sources make; each runs in an empty folder and shows what its text says."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from test_attention_page import PAGE, read_blocks

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
ORDER = ("names", "attention", "measuring", "upgrade")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
Cells = list[NotebookNode]


def read(name: str) -> Cells:
    cells: Cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    return cells


def text(cells: Cells) -> str:
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def printed(cells: Cells) -> str:
    """What the cells print on stdout, without colours."""
    streams = (
        output.text for cell in cells for output in cell.get("outputs", ()) if output.get("name") == "stdout"
    )
    return re.sub(r"\x1b\[[\d;]*m", "", "".join(streams))


def check_names(cells: Cells) -> None:
    """Names from both models, a lower loss from the Transformer, a picture, and constraints that hold."""
    output = printed(cells)
    losses = {
        model: float(loss)
        for model, loss in re.findall(r"^(\w+) .*test loss ([\d.]+)$", output, re.MULTILINE)
    }
    uniform = float(re.findall(r"uniform: ([\d.]+)", output)[0])
    assert losses["transformer"] < losses["bigram"] < uniform
    assert (
        len(re.findall(r"^\w+ +(?:new|train|validation|test) +log-probability", output, re.MULTILINE)) == 16
    )
    scores = {
        name: float(score)
        for name, score in re.findall(r"^(\w+) .*transformer +(-[\d.]+)$", output, re.MULTILINE)
    }
    assert scores["emma"] > scores["xqzw"]
    assert float(re.findall(r"largest difference from a fused kernel: (.*)$", output, re.MULTILINE)[0]) < 1e-5
    assert re.search(r"^ma\w+( ma\w+){4}$", output, re.MULTILINE)
    assert any("image/png" in output.get("data", ()) for cell in cells for output in cell.get("outputs", ()))


def check_attention(cells: Cells) -> None:
    """Each block prints what the page quotes."""
    outputs = [printed([cell]) for cell in cells if cell.cell_type == "code"]
    quoted = [block.output for block in read_blocks(PAGE.read_text(encoding="utf-8"))]
    assert outputs == ["", *quoted]  # the first cell installs flashmore


def check_measuring(cells: Cells) -> None:
    """A ratio within its interval, a verdict, and a bound of the gain above 1."""
    output = printed(cells)
    ratio, low, high = map(
        float, re.findall(r"manual / \w+: ([\d.]+), .* ([\d.]+) to ([\d.]+)$", output, re.MULTILINE)[0]
    )
    assert 0 < low <= ratio <= high
    assert re.search(r"^verdict: (faster|slower|no difference|inconclusive)$", output, re.MULTILINE)
    assert float(re.findall(r"of the step: at most ([\d.]+) times", output)[0]) > 1


def check_upgrade(cells: Cells) -> None:
    """One place rewritten and one refused, the file written, and differences of rounding only."""
    output = printed(cells)
    assert re.findall(r"^lines .*: (\w+)$", output, re.MULTILINE) == ["rewritten", "refused"]
    assert "1 can be rewritten (1 tested), 1 refused, 0 already fused, 1 file written" in output
    assert "+        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)" in output
    differences = [
        float(one) for one in re.findall(r"^largest difference .* ([\d.e+-]+)$", output, re.MULTILINE)
    ]
    assert len(differences) == 2
    assert max(differences) < 1e-5
    assert "SelfAttention.forward: already fused" in output
    assert re.search(r"^PyTorch chooses \w+$", output, re.MULTILINE)
    assert re.search(r"^math +can run$", output, re.MULTILINE)


CHECKS: dict[str, Callable[[Cells], None]] = {
    "names": check_names,
    "attention": check_attention,
    "measuring": check_measuring,
    "upgrade": check_upgrade,
}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Where `flashmore` is this environment's, and nothing is read from or written to the home directory."""
    for name in (
        "IPYTHONDIR",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "FLASHMORE_CACHE",
    ):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return dict(os.environ)


@pytest.mark.parametrize("name", ORDER)
def test_a_notebook_runs(name: str, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "work")}})
    client.execute(env=environment)
    CHECKS[name](notebook.cells)
    complaints = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stderr"
    ]
    assert not [one.text for one in complaints if "Warning" in one.text]


def test_the_notebooks_are_what_their_sources_make() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "make_notebooks.py"), "--check"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}run: python scripts/make_notebooks.py"


def test_a_changed_notebook_is_named_and_made_again(tmp_path: Path) -> None:
    for folder in ("scripts", "docs", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    changed = tmp_path / "notebooks" / "names.ipynb"
    right = changed.read_text(encoding="utf-8")
    changed.write_text(right.replace("A Bigram", "A bigram"), encoding="utf-8")
    command = [sys.executable, str(tmp_path / "scripts" / "make_notebooks.py")]
    checked = subprocess.run([*command, "--check"], check=False, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (1, "notebooks/names.ipynb is out of date\n")
    subprocess.run(command, check=True, capture_output=True)
    assert changed.read_text(encoding="utf-8") == right


@pytest.mark.parametrize("name", ORDER)
def test_a_notebook_has_no_outputs_and_installs_flashmore_first(name: str) -> None:
    code = [cell for cell in read(name) if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count is not None]
    assert "%pip install" in code[0].source
    assert len({cell.id for cell in read(name)}) == len(read(name))


@pytest.mark.parametrize("name", ORDER)
def test_a_notebook_names_its_neighbours_and_its_links_lead_somewhere(name: str) -> None:
    index = ORDER.index(name)
    neighbours = {f"{other}.ipynb" for other in ORDER[max(index - 1, 0) : index + 2] if other != name}
    links = set(LINK.findall(text(read(name))))
    assert neighbours <= links
    assert [link for link in links if not (FOLDER / link).exists()] == []
