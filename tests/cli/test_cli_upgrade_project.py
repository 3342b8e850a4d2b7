"""`flashmore upgrade` where people work: settings, editors, pre-commit, GitHub Actions, without torch."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from flashmore.upgrade.project.files import LARGEST
from flashmore.upgrade.rules import RULES
from forks import Forks

ROOT = Path(__file__).parents[2]
SOURCE = """\
import torch


def attend(q, k, v):  # é
    w = (q @ k.transpose(-2, -1) / q.size(-1) ** 0.5).softmax(-1)
    return w @ v


def weights_too(q, k, v):
    w = (q @ k.transpose(-2, -1) / q.size(-1) ** 0.5).softmax(-1)
    return w @ v, w
"""
WRITTEN = SOURCE.replace(
    """\
    w = (q @ k.transpose(-2, -1) / q.size(-1) ** 0.5).softmax(-1)
    return w @ v
""",
    """\
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)
""",
    1,
)
CONCISE = """\
model.py:5:5: FM001 can be rewritten: softmax of a scaled product, times values
model.py:10:5: FM001 refused: scores or weights are returned in line 11
1 file searched: 1 can be rewritten, 1 refused, 0 already fused
"""
WITHOUT_TORCH = """\
import sys
from importlib.machinery import PathFinder
class WithoutTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "torch" else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorch
from flashmore.cli.main import main
sys.exit(main(sys.argv[1:]))
"""

Call = Callable[..., CompletedProcess[str]]
Refusal = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def with_stdin(environment: dict[str, str], forks: Forks) -> Callable[..., "CompletedProcess[bytes]"]:
    """Run a command in a process with these bytes as stdin."""

    def run(data: bytes, *words: str) -> "CompletedProcess[bytes]":
        done = forks.run(("-m", "flashmore", "upgrade", "-", *words), environment, stdin=data)
        out, err = (text.encode(errors="surrogateescape") for text in (done.stdout, done.stderr))
        return CompletedProcess(done.args, done.returncode, out, err)

    return run


WithStdin = Callable[..., "CompletedProcess[bytes]"]


def settings(folder: Path, table: str) -> None:
    (folder / "pyproject.toml").write_text(f"[tool.flashmore.upgrade]\n{table}\n", encoding="utf-8")


@pytest.mark.parametrize("columns", [80, 120])
def test_a_line_per_place_is_not_folded(columns: int, folder: Path, process: Call) -> None:
    done = process("upgrade", ".", "--output-format", "concise", COLUMNS=str(columns))
    assert (done.returncode, done.stdout, done.stderr) == (1, CONCISE, "")


def test_each_format_is_the_only_thing_on_stdout(folder: Path, call: Call) -> None:
    done = {
        name: call("upgrade", ".", "--output-format", name) for name in ("json", "sarif", "github", "full")
    }
    assert {each.returncode for each in done.values()} == {1}
    assert {each.stderr for each in done.values()} == {""}
    assert json.loads(done["json"].stdout)["sites"][0]["code"] == "FM001"
    assert json.loads(done["sarif"].stdout)["version"] == "2.1.0"
    assert done["github"].stdout.startswith(
        "::warning file=model.py,line=5,col=5,endLine=6,endColumn=17,title="
    )
    assert done["full"].stdout == call("upgrade", ".").stdout


def test_the_projects_settings_apply_and_options_replace_them(folder: Path, call: Call) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "copy.py").write_text(SOURCE, encoding="utf-8")
    settings(folder, 'exclude = ["data"]')
    assert call("upgrade", ".").stdout.endswith(
        "1 file searched: 1 can be rewritten, 1 refused, 0 already fused\n"
    )
    assert "2 files searched" in call("upgrade", ".", "--exclude", "nothing").stdout
    assert "0 files searched" in call("upgrade", ".", "--exclude", "data, model.py").stdout
    settings(folder, 'ignore = ["FM001"]')
    done = call("upgrade", ".")
    assert (done.returncode, done.stdout.count("0 can be rewritten, 0 refused")) == (0, 1)
    assert "2 can be rewritten" in call("upgrade", ".", "--select", "FM001").stdout
    settings(folder, 'target-torch = "1.13"')
    done = call("upgrade", "model.py")
    assert (done.returncode, "target-torch is 1.13, but" in done.stdout) == (0, True)


def test_places_with_a_comment_are_counted_and_not_shown(folder: Path, call: Call) -> None:
    text = SOURCE.replace("w @ v\n", "w @ v  # flashmore: ignore[FM001, FM999]\n")
    (folder / "model.py").write_text(
        text.replace("w @ v, w", "w @ v, w  # flashmore: ignore"), encoding="utf-8"
    )
    done = call("upgrade", ".", "--write")
    assert done.returncode == 0
    assert done.stdout == "1 file searched: 0 can be rewritten, 0 refused, 0 already fused, 2 ignored\n"
    assert done.stderr.startswith("model.py: line 6: no rule is called 'FM999'")
    assert json.loads(call("upgrade", ".", "--output-format", "json").stdout)["ignored"] == 2


@pytest.mark.parametrize(
    ("table", "words", "what"),
    [
        ("exlude = []", (), "'exlude'"),
        ('exclude = ["[z-a]"]', (), "[z-a]"),
        ("[", (), "valid TOML"),
        ('select = ["FM9"]', (), "'FM9'"),
        ("", ("--select", "E501"), "rules for --select"),
        ("", ("--ignore", "FM001,"), "rules for --ignore"),
        ("", ("--exclude", "!model.py"), "patterns of files for --exclude"),
        ("", ("--output-format", "json", "--diff"), "found: --diff and --output-format\n"),
        ("", ("-",), "- as the only path"),
        ("", ("--stdin-filename", "model.py"), "- with --stdin-filename"),
    ],
)
def test_what_is_not_valid_is_a_message(
    table: str, words: tuple[str, ...], what: str, folder: Path, call: Call, refusal: Refusal
) -> None:
    settings(folder, table)
    assert what in refusal(call("upgrade", ".", *words), 2)


def test_a_source_on_stdin_is_reported_under_its_name(folder: Path, with_stdin: WithStdin) -> None:
    (folder / "model.py").unlink()
    done = with_stdin(SOURCE.encode(), "--stdin-filename", "model.py", "--output-format", "concise")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (1, CONCISE, b"")
    done = with_stdin(SOURCE.encode(), "--diff")
    assert done.stdout.startswith(b"--- a/-\n+++ b/-\n")


def test_an_editor_gets_the_rewritten_source_on_stdout(folder: Path, with_stdin: WithStdin) -> None:
    (folder / "model.py").unlink()
    mark = b"\xef\xbb\xbf"
    data = mark + SOURCE.replace("\n", "\r\n").encode()
    done = with_stdin(data, "--stdin-filename", "model.py", "--write")
    assert done.stdout == mark + WRITTEN.replace("\n", "\r\n").encode()
    assert b"tested on synthetic tensors" in done.stderr
    assert done.returncode == 0
    assert list(folder.iterdir()) == []
    again = with_stdin(done.stdout, "--stdin-filename", "model.py", "--write", "--output-format", "concise")
    assert again.stdout == done.stdout
    assert b"model.py:9:5: FM001 refused" in again.stderr


def test_an_editor_gets_back_what_cannot_be_read_or_is_excluded(folder: Path, with_stdin: WithStdin) -> None:
    for data, why in ((b"x = '\xff'\n", b"its encoding is unclear"), (b"def f(:\n", b"it is not valid")):
        done = with_stdin(data, "--stdin-filename", "model.py", "--write")
        assert (done.returncode, done.stdout) == (2, data)
        assert b"model.py: not read: " + why in done.stderr
        done = with_stdin(data, "--stdin-filename", "model.py")
        assert (done.returncode, done.stderr) == (2, b"")
        assert b"model.py: not read: " + why in done.stdout
    settings(folder, 'exclude = ["model.py"]')
    words = ("--stdin-filename", "model.py", "--write", "--force-exclude")
    done = with_stdin(SOURCE.encode(), *words)
    assert (done.returncode, done.stdout.decode()) == (0, SOURCE)
    assert done.stderr == b"0 files searched: 0 can be rewritten, 0 refused, 0 already fused\n"
    done = with_stdin(b"#" * (LARGEST + 1), *words)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"at most 1,048,576 bytes on stdin" in done.stderr


def test_the_hook_of_pre_commit_leaves_out_what_is_excluded(folder: Path, process: Call) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    program, *words = shlex.split(hook["entry"])
    assert program == "flashmore"
    (folder / "data").mkdir()
    (folder / "data" / "copy.py").write_text(SOURCE, encoding="utf-8")
    settings(folder, 'exclude = ["data/"]')
    done = process(*words, "model.py", "data/copy.py")
    assert (done.returncode, done.stdout) == (1, CONCISE)


def test_the_workflow_reports_and_fails_for_errors_alone(folder: Path, environment: dict[str, str]) -> None:
    workflow = yaml.safe_load((ROOT / "examples" / "flashmore-upgrade.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["upgrade"]["steps"]
    commands = [step["run"] for step in steps if "flashmore upgrade" in step.get("run", "")]
    (upload,) = [step for step in steps if "upload-sarif" in step.get("uses", "")]
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])

    def run(command: str) -> "CompletedProcess[str]":
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command]
        return subprocess.run(words, env=environment | {"PATH": path}, capture_output=True, encoding="utf-8")

    done = [run(command) for command in commands]
    assert [each.returncode for each in done] == [0, 0], done
    assert "::warning file=model.py," in done[0].stdout
    document = json.loads((folder / upload["with"]["sarif_file"]).read_text(encoding="utf-8"))
    assert len(document["runs"][0]["results"]) == 2
    settings(folder, "exlude = []")
    assert [run(command).returncode for command in commands] == [1, 1]


def test_a_rule_is_explained_as_on_its_page(call: Call, refusal: Refusal) -> None:
    pages = {each.code: (ROOT / "docs" / "rules" / f"{each.code}.md").read_text("utf-8") for each in RULES}
    for word in ("FM001", "fm001", "manual-attention"):
        assert call("rule", word).stdout == pages["FM001"]
    assert call("rule", "--all").stdout == "\n".join(pages.values())
    assert "FM001 (manual-attention)" in refusal(call("rule", "FM01"), 2)
    assert "none" in refusal(call("rule"), 2)
    assert "both" in refusal(call("rule", "FM001", "--all"), 2)


def test_without_torch_the_search_works_and_a_test_says_what_it_needs(
    folder: Path, environment: dict[str, str], refusal: Refusal
) -> None:
    def run(*words: str) -> CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_TORCH, *words]
        return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)

    for index in range(70):  # so many that several processes share them
        (folder / f"other{index}.py").write_text("x = 1\n", encoding="utf-8")
    done = run("upgrade", ".", "--output-format", "concise")
    assert done.returncode == 1
    assert re.fullmatch(r"(searching: \d+/71 files\n)?", done.stderr)  # after two seconds
    assert done.stdout == CONCISE.replace("1 file", "71 files")
    assert run("rule", "FM001").returncode == 0
    for option in ("--test", "--write"):
        message = refusal(run("upgrade", ".", option), 2)
        assert f"wanted: torch for {option}" in message
        assert "pip install torch" in message
    assert "torch is not installed" in refusal(run("explain"), 2)
    assert (folder / "model.py").read_text(encoding="utf-8") == SOURCE
