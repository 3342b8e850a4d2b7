"""`flashmore upgrade` on notebooks: reports by cell, patches and writes of their JSON; nothing is run."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import nbformat
import pytest

from forks import Forks

Call = Callable[..., CompletedProcess[str]]
Refusal = Callable[..., str]

IMPORTS = "%matplotlib inline\nimport math\nfrom torch import nn\nfrom torch.nn import functional as F"
HEAD = """\
# é
class Head(nn.Module):
    def forward(self, q, k, v):
        att = (q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))
        att = F.softmax(att, dim=-1)
        return att @ v"""
TRAIN = "open('trap', 'w')\nhead = Head()"
OUTPUT = {"output_type": "stream", "name": "stdout", "text": ["é\n", "0.5"]}


def notebook(**members: Any) -> dict[str, Any]:
    """A notebook whose attention is in its fourth cell."""
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Attention\n", "é"]},
        {"cell_type": "code", "source": IMPORTS.splitlines(keepends=True)},
        {"cell_type": "code", "source": "%%bash\npip list"},
        {"cell_type": "code", "source": HEAD.splitlines(keepends=True)},
        {"cell_type": "code", "source": TRAIN},
    ]
    for cell in cells[1:]:
        cell |= {"execution_count": 3, "metadata": {"tags": ["é"]}, "outputs": [OUTPUT]}
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4} | members


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook(), indent=1), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expected(before: str) -> str:
    """The notebook with the fused call: three lines of JSON become one."""
    start = before.index('    "        att = (q @ k')
    end = before.index('    "        return att @ v"')
    call = "F.scaled_dot_product_attention(q, k, v)"
    return before[:start] + before[end:].replace("att @ v", call, 1)


def test_places_and_changes_are_told_by_cell(folder: Path, call: Call) -> None:
    done = call("upgrade", "a.ipynb")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "a.ipynb",
        "  cell 4, line 4-6 Head.forward: FM001 rewritten: softmax of a scaled product, times values",
        "      @@ -1,6 +1,4 @@ cell 4",
        "       # é",
        "       class Head(nn.Module):",
        "           def forward(self, q, k, v):",
        "      -        att = (q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))",
        "      -        att = F.softmax(att, dim=-1)",
        "      -        return att @ v",
        "      +        return F.scaled_dot_product_attention(q, k, v)",
        "",
        "a.ipynb: cell 3: not read: it is a `%%bash` cell, which is not searched",
        "",
        "1 file searched: 1 can be rewritten, 0 refused, 0 already fused, 1 cell not read",
    ]
    document = json.loads(call("upgrade", ".", "--output-format", "json").stdout)
    (site,) = document["sites"]
    assert (site["path"], site["cell"], site["line"], site["end_line"]) == ("a.ipynb", 4, 4, 6)
    assert site["diff"].startswith("--- a/a.ipynb\n+++ b/a.ipynb\n@@ -1,6 +1,4 @@ cell 4\n # é\n")
    (left_out,) = document["not_read"]
    assert (left_out["path"], left_out["cell"]) == ("a.ipynb", 3)
    assert document["searched"] == 1
    assert not (folder / "trap").exists()


def test_a_notebook_is_tested_and_written_and_the_rest_stays(folder: Path, call: Call) -> None:
    path = folder / "a.ipynb"
    path.chmod(0o640)
    before = path.read_text(encoding="utf-8")
    done = call("upgrade", "a.ipynb", "--write")
    assert done.returncode == 0
    assert "1 can be rewritten (1 tested)" in done.stdout
    assert path.read_text(encoding="utf-8") == expected(before)
    assert path.stat().st_mode & 0o777 == 0o640
    nbformat.validate(nbformat.read(path, as_version=4))
    assert not (folder / "trap").exists()
    again = call("upgrade", "a.ipynb", "--write")
    assert (again.returncode, path.read_text(encoding="utf-8")) == (0, expected(before))


def test_formats_with_a_line_per_place_name_the_cell(folder: Path, call: Call) -> None:
    concise = call("upgrade", "a.ipynb", "--output-format", "concise").stdout.splitlines()
    assert concise[:2] == [
        "a.ipynb:cell 4:4:9: FM001 can be rewritten: softmax of a scaled product, times values",
        "a.ipynb: cell 3: not read: it is a `%%bash` cell, which is not searched",
    ]
    github = call("upgrade", "a.ipynb", "--output-format", "github").stdout.splitlines()
    assert github[0] == (
        "::warning file=a.ipynb,title=flashmore FM001 (manual-attention)::cell 4, line 4: can be rewritten: "
        "softmax of a scaled product, times values"
    )
    (run,) = json.loads(call("upgrade", "a.ipynb", "--output-format", "sarif").stdout)["runs"]
    (result,) = run["results"]
    assert result["message"]["text"].startswith("cell 4, line 4: can be rewritten")
    assert result["locations"][0]["physicalLocation"].keys() == {"artifactLocation"}
    assert "fixes" not in result


def test_comments_in_cells_ignore_places(folder: Path, call: Call) -> None:
    path = folder / "a.ipynb"
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace("att @ v", "att @ v  # flashmore: ignore[FM001, FM999]"), encoding="utf-8")
    done = call("upgrade", "a.ipynb")
    assert done.returncode == 0
    assert "0 can be rewritten, 0 refused, 0 already fused, 1 ignored" in done.stdout
    assert "a.ipynb: cell 4, line 6: no rule is called" in done.stderr


def test_stdin_may_hold_a_notebook(folder: Path, environment: dict[str, str], forks: Forks) -> None:
    before = (folder / "a.ipynb").read_text(encoding="utf-8")
    words = ("-m", "flashmore", "upgrade", "-", "--stdin-filename", "a.ipynb", "--write")
    done = forks.run(words, environment, stdin=before.encode())
    assert (done.returncode, done.stdout) == (0, expected(before))
    assert (folder / "a.ipynb").read_text(encoding="utf-8") == before


def test_a_patch_is_of_the_json_and_git_applies_it(folder: Path, call: Call) -> None:
    before = (folder / "a.ipynb").read_text(encoding="utf-8")
    done = call("upgrade", ".", "--diff")
    assert done.returncode == 1
    assert done.stderr.endswith("a.ipynb: cell 3: not read: it is a `%%bash` cell, which is not searched\n")
    subprocess.run(["git", "apply"], input=done.stdout, check=True, encoding="utf-8", cwd=folder)
    assert (folder / "a.ipynb").read_text(encoding="utf-8") == expected(before)


def test_uncommitted_changes_stay_unless_forced(folder: Path, call: Call) -> None:
    subprocess.run("git init -q && git add .", shell=True, check=True, cwd=folder)
    path = folder / "a.ipynb"
    changed = path.read_text(encoding="utf-8").replace('"execution_count": 3', '"execution_count": 4')
    path.write_text(changed, encoding="utf-8")
    done = call("upgrade", "a.ipynb", "--write")
    assert done.returncode == 1
    assert "not written: it differs from what was last added or committed" in done.stdout
    assert path.read_text(encoding="utf-8") == changed
    assert call("upgrade", "a.ipynb", "--write", "--force").returncode == 0
    assert path.read_text(encoding="utf-8") == expected(changed)


def test_a_notebook_that_cannot_be_read_is_2(folder: Path, call: Call) -> None:
    old = {"nbformat": 3, "worksheets": [{"cells": []}]}
    (folder / "old.ipynb").write_text(json.dumps(old), encoding="utf-8")
    done = call("upgrade", "old.ipynb")
    assert done.returncode == 2
    assert "old.ipynb: not read: it is a notebook of format 3" in done.stdout
    assert "jupyter nbconvert" in done.stdout
    assert call("upgrade", ".").returncode == 1


def test_no_program_runs_a_notebook(folder: Path, call: Call, refusal: Refusal) -> None:
    for option, value in (("--example", "module:made"), ("--run", "train.py")):
        (folder / "train.py").touch()
        assert "the notebook a.ipynb" in refusal(call("upgrade", "a.ipynb", option, value), 2)
    assert "nbconvert" in refusal(call("upgrade", "train.py", "--run", "a.ipynb"), 2)


def test_beside_a_program_a_notebook_is_tested_on_synthetic_tensors(folder: Path, call: Call) -> None:
    source = "\n".join([IMPORTS.partition("\n")[2], HEAD, ""])
    (folder / "model.py").write_text(source, encoding="utf-8")
    (folder / "train.py").write_text(
        "import model, torch\nmodel.Head()(*torch.randn(3, 2, 4, 8))", encoding="utf-8"
    )
    done = call("upgrade", ".", "--run", "train.py", "--output-format", "json")
    sites = {one["path"]: one for one in json.loads(done.stdout)["sites"]}
    assert sites["a.ipynb"]["tested"] is sites["model.py"]["tested"] is True
    assert [test["why_not"] for test in sites["a.ipynb"]["tests"]] == [None, "notebooks are not run"]
    assert [test["passed"] for test in sites["model.py"]["tests"]] == [True, True]


def test_copies_that_jupyter_keeps_are_not_searched(folder: Path, call: Call) -> None:
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "a.ipynb").rename(folder / ".ipynb_checkpoints" / "a-checkpoint.ipynb")
    assert call("upgrade", ".").stdout.startswith("0 files searched")
