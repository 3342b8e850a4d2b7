"""`flashmore upgrade` as a user meets it: reports, patches, tests, writing, real runs, bad input."""

import ast
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from forks import Forks

MODEL = """\
import math

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.qkv(x).view(B, T, 3, 2, 4).permute(2, 0, 3, 1, 4)
        att = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))  # the scores
        att = F.softmax(att, dim=-1)
        att = self.dropout(att)
        y = att @ v
        return y.transpose(1, 2).reshape(B, T, C)


def weights_too(q, k, v):
    w = (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(-1)
    return w @ v, w


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def made():
    torch.manual_seed(0)
    return Attention(), torch.randn(2, 6, 8)


def raises():
    raise LookupError("no weights here")
"""
TRAIN = """\
import sys
import tempfile
import torch
from model import Attention
model = Attention()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(int(sys.argv[1])):
    model(torch.randn(2, 6, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
print("trained")
"""

Call = Callable[..., CompletedProcess[str]]
Refusal = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def site(document: Any, verdict: str) -> Any:
    (found,) = [one for one in document["sites"] if one["verdict"] == verdict]
    return found


def test_the_report_names_every_place_its_verdict_and_reason(folder: Path, call: Call) -> None:
    done = call("upgrade", "model.py")
    assert done.returncode == 1
    assert done.stderr == ""
    text = done.stdout
    assert "Attention.forward: FM001 rewritten" in text
    assert "+        y = F.scaled_dot_product_attention(" in text
    assert "weights_too: FM001 refused: " in text
    assert "line 26" in text
    assert "fused: FM001 already fused" in text
    assert text.splitlines()[-1] == "1 file searched: 1 can be rewritten, 1 refused, 1 already fused"
    assert (folder / "model.py").read_text(encoding="utf-8") == MODEL


def test_the_document_holds_what_is_promised(folder: Path, call: Call) -> None:
    (folder / "broken.py").write_text("def f(:\n", encoding="utf-8")
    done = call("upgrade", ".", "--output-format", "json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    promised = {"path", "line", "end_line", "symbol", "verdict", "reason", "guard", "diff", "tested"}
    assert all(promised <= one.keys() for one in document["sites"])
    rewritten = site(document, "rewritten")
    assert (rewritten["line"], rewritten["end_line"]) == (17, 20)
    assert rewritten["symbol"] == "Attention.forward"
    assert rewritten["diff"].startswith("--- a/model.py\n+++ b/model.py\n@@")
    assert rewritten["guard"] is None
    assert rewritten["tested"] is None
    assert site(document, "refused")["diff"] == ""
    ((path, reason),) = [(one["path"], one["reason"]) for one in document["not_read"]]
    assert (path, bool(reason)) == ("broken.py", True)


def test_nothing_to_rewrite_is_0(folder: Path, call: Call) -> None:
    source = MODEL.replace("att @ v", "att @ v + att.sum()")
    (folder / "model.py").write_text(source, encoding="utf-8")
    done = call("upgrade", "model.py")
    assert done.returncode == 0
    assert "0 can be rewritten, 2 refused, 1 already fused" in done.stdout


def test_nothing_of_the_users_runs_by_default(folder: Path, call: Call) -> None:
    (folder / "model.py").write_text(f"open('trap', 'w')\n{MODEL}", encoding="utf-8")
    call("upgrade", ".", "--test")
    assert not (folder / "trap").exists()


def test_git_applies_the_patch_and_a_second_run_changes_nothing(folder: Path, call: Call) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    patch = call("upgrade", ".", "--diff")
    assert patch.returncode == 1
    (folder / "p.patch").write_text(patch.stdout, encoding="utf-8")
    subprocess.run(["git", "apply", "p.patch"], check=True)
    again = call("upgrade", ".", "--diff")
    assert (again.returncode, again.stdout) == (0, "")


def test_a_patch_is_what_would_be_written(folder: Path, call: Call) -> None:
    """Two masks of finfo.min together fail the test, see test_verify_kernels.py."""
    lowest = "torch.finfo(torch.float32).min"
    (folder / "masks.py").write_text(
        f"""import torch


def attend(q, k, v, pad):
    later = torch.full((q.size(-2), k.size(-2)), {lowest}).triu(1)
    return ((q @ k.mT) + later + (1.0 - pad[:, None, None, :]) * {lowest}).softmax(-1) @ v
"""
    )
    patch = call("upgrade", ".", "--diff")
    assert "+++ b/model.py" in patch.stdout
    assert "masks.py" not in patch.stdout
    assert "places that are not in the patch: 1" in patch.stderr
    before = {path.name: path.read_text() for path in folder.glob("*.py")}
    call("upgrade", ".", "--write")
    changed = {name for name, text in before.items() if (folder / name).read_text() != text}
    assert changed == set(re.findall(r"^\+\+\+ b/(.*)$", patch.stdout, re.MULTILINE))


ENCODED = {
    "latin-1, CRLF": ("# -*- coding: latin-1 -*-\r\n", "latin-1", "é", "\r\n"),
    "byte order mark": ("", "utf-8-sig", "é", "\n"),
    "byte order mark, CRLF": ("", "utf-8-sig", "é", "\r\n"),
    "shift-jis": ("# coding: shift_jis\n", "shift_jis", "テ", "\n"),
    "not even ASCII is itself": ("# coding: utf-7\n", "utf-7", "é", "\n"),
}


def test_a_patch_keeps_the_encoding_of_each_file(
    folder: Path, forks: Forks, environment: dict[str, str]
) -> None:
    (folder / "model.py").unlink()
    short = "\n".join(MODEL.split("\n")[4:7]) + MODEL[MODEL.index("def fused") :].replace(
        "F.scaled_dot_product_attention(q, k, v)", "F.softmax(q @ k.mT, -1) @ v  # the scores"
    )
    paths = {}
    for number, (head, encoding, character, line) in enumerate(ENCODED.values()):
        text = head + short.replace("the scores", character).replace("\n", line)
        for path in (folder / f"model{number}.py", folder / f"mo dèl{number}.py"):
            path.write_bytes(text.encode(encoding))
            paths[path] = encoding, line
    with (folder / "p.patch").open("wb") as patch:
        done = forks.run(("-m", "flashmore", "upgrade", ".", "--diff"), environment, stdout=patch.fileno())
    assert done.returncode == 1
    subprocess.run(["git", "apply", "p.patch"], check=True)
    for path, (encoding, line) in paths.items():
        after = path.read_bytes().decode(encoding)
        assert "F.scaled_dot_product_attention(q, k, v, scale=1.0)" in after, path
        assert after.replace("\r\n", "\n").count("\n") == after.count(line)
        assert after.encode(encoding) == path.read_bytes()
        ast.parse(path.read_bytes())


def test_write_tests_writes_and_has_nothing_left(folder: Path, call: Call) -> None:
    done = call("upgrade", ".", "--write")
    assert done.returncode == 0, done.stdout
    assert "tested on synthetic tensors" in done.stdout
    assert "1 file written" in done.stdout
    written = (folder / "model.py").read_text(encoding="utf-8")
    assert "scaled_dot_product_attention" in written.split("def weights_too")[0]
    assert written.split("def weights_too")[1] == MODEL.split("def weights_too")[1]
    again = call("upgrade", ".", "--write")
    assert again.returncode == 0
    assert (folder / "model.py").read_text(encoding="utf-8") == written


def test_one_file_that_cannot_be_written_leaves_the_others(folder: Path, call: Call) -> None:
    (folder / "locked.py").write_text(MODEL, encoding="utf-8")
    (folder / "locked.py").chmod(0o444)
    done = call("upgrade", ".", "--write")
    assert done.returncode == 1
    assert "not written: it is read-only" in done.stdout
    assert (folder / "locked.py").read_text(encoding="utf-8") == MODEL
    assert (folder / "model.py").read_text(encoding="utf-8") != MODEL


def test_what_git_has_not_stored_is_written_by_force_alone(folder: Path, call: Call) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "model.py"], check=True)
    with (folder / "model.py").open("a", encoding="utf-8") as model:
        model.write("\n# not stored\n")
    done = call("upgrade", "model.py", "--write")
    assert done.returncode == 1
    assert "last added or committed" in done.stdout
    assert call("upgrade", "model.py", "--write", "--force").returncode == 0


def test_an_example_tests_on_real_inputs_and_measures(folder: Path, call: Call) -> None:
    done = call("upgrade", "model.py", "--example", "model:made", "--gain", "--output-format", "json")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    rewritten = site(document, "rewritten")
    assert rewritten["tested"] is True
    assert [verification["on"] for verification in rewritten["tests"]] == [
        "synthetic tensors",
        "the inputs from --example model:made",
    ]
    gain = rewritten["gain"]
    assert gain["calls"] == 1
    assert gain["alone"]["before_ms"]["median"] > 0
    assert gain["alone"]["before_bytes"] > 0
    assert gain["kernel"] in ("flash", "math", "efficient", "cudnn")
    whole = document["gain"]
    assert whole["problem"] is None
    assert 0 < whole["share"] < 1.5
    assert whole["step"]["ratio"]["low"] <= whole["step"]["ratio"]["value"] <= whole["step"]["ratio"]["high"]
    assert (folder / "model.py").read_text(encoding="utf-8") == MODEL


@pytest.mark.long
def test_a_script_is_timed_between_its_own_steps(folder: Path, call: Call) -> None:
    (folder / "train.py").write_text(TRAIN, encoding="utf-8")
    done = call("upgrade", "model.py", "--run", "python train.py 24", "--gain", "--output-format", "json")
    document = json.loads(done.stdout)
    assert "trained" not in done.stdout
    assert site(document, "rewritten")["tested"] is True
    assert document["gain"]["whole"] == "a step of the script"
    assert document["gain"]["step"]["ratio"]["pairs"] == 9


def test_an_example_that_raises_is_told_and_the_rest_goes_on(folder: Path, call: Call) -> None:
    done = call("upgrade", "model.py", "--example", "model:raises")
    assert done.returncode == 2
    assert "LookupError: no weights here" in done.stderr
    assert "tested on synthetic tensors" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ((), "files or folders"),
        (("missing.py",), "missing.py"),
        (("model.py", "--diff", "--output-format", "json"), "--diff"),
        (("model.py", "--json", "--output-format", "sarif"), "--json"),
        (("model.py", "--gain"), "--gain alone"),
        (("model.py", "--force"), "--force alone"),
        (("model.py", "--example", "model"), "module:function"),
        (("model.py", "--example", "os;x:y"), "module:function"),
        (("model.py", "--example", "a:b", "--run", "x.py"), "both"),
        (("model.py", "--run", "missing.py --steps 3"), "missing.py"),
        (("model.py", "--run", "'train.py"), "--run"),
        (("model.py", "--run", ""), "--run"),
        (("model.py", "--run", "python -c 'print(1)'"), "python -m train"),
        (("model.py", "--seconds", "0"), "--seconds"),
    ],
)
def test_wrong_use_is_a_message(
    folder: Path, call: Call, refusal: Refusal, words: tuple[str, ...], what: str
) -> None:
    assert what in refusal(call("upgrade", *words), 2)


def test_odd_files_are_named_and_the_others_go_on(folder: Path, call: Call) -> None:
    odd = {
        "latin.py": b"# -*- coding: klingon -*-\n",
        "bytes.py": b"x = '\xff'\n",
        "null.py": b"x = 1\0\n",
        "python2.py": b"print 'x'\n",
        "wide.py": "# coding: utf-16\nx = 1\n".encode("utf-16"),
        "again.py": b"# coding: utf-16\nx = 1\n\n",
        "deep.py": b"x = " + b"(" * 5000 + b")" * 5000,
    }
    for name, raw in odd.items():
        (folder / name).write_bytes(raw)
    (folder / "large.py").write_bytes(b"x = 1\n" * (2 * 2**20))
    (folder / "empty.py").write_bytes(b"")
    (folder / "loop").symlink_to(folder)
    (folder / "nowhere.py").symlink_to(folder / "missing.py")
    (folder / "round.py").symlink_to(folder / "circle.py")
    (folder / "circle.py").symlink_to(folder / "round.py")
    os.mkfifo(folder / "pipe.py")
    document = json.loads(call("upgrade", ".", "--output-format", "json").stdout)
    assert {one["path"] for one in document["not_read"]} == {
        *odd,
        "large.py",
        "nowhere.py",
        "round.py",
        "circle.py",
        "pipe.py",
    }
    assert [one["path"] for one in document["sites"] if one["verdict"] == "rewritten"] == ["model.py"]


def test_one_file_that_is_no_python_is_2(folder: Path, call: Call) -> None:
    (folder / "broken.py").write_text("def f(:\n", encoding="utf-8")
    done = call("upgrade", "broken.py")
    assert done.returncode == 2
    assert "broken.py: not read" in done.stdout


@pytest.mark.parametrize("name", ["a.ipynb", "A.IPYNB", "data.json", "module.pyx", "module.pyc", "page.md"])
def test_what_is_no_python_file_or_notebook_is_not_searched_if_given(
    folder: Path, call: Call, name: str
) -> None:
    (folder / name).write_text("[1]", encoding="utf-8")
    done = call("upgrade", name)
    assert done.returncode == 2
    assert f"{name}: not read: it" in done.stdout
    assert done.stdout.endswith(
        "0 files searched: 0 can be rewritten, 0 refused, 0 already fused, 1 file not read\n"
    )


def test_a_script_without_a_suffix_is_searched(folder: Path, call: Call) -> None:
    (folder / "model.py").rename(folder / "train")
    assert "train\n" in call("upgrade", "train").stdout
    (folder / "train").rename(folder / "train.in")
    (folder / "train.in").write_text("#!/usr/bin/env python3\n" + MODEL, encoding="utf-8")
    assert call("upgrade", "train.in").returncode == 1


def test_a_path_that_cannot_be_looked_at_is_named_and_the_others_go_on(folder: Path, call: Call) -> None:
    long = "x" * 300 + ".py"  # no file system has such a name
    done = call("upgrade", "model.py", long)
    assert done.returncode == 2
    assert f"{long}: not read: it cannot be read: File name too long" in done.stdout
    assert "1 can be rewritten" in done.stdout
    assert "disk" not in done.stderr


@contextmanager
def without_rights() -> Iterator[None]:
    """Not as the superuser, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_2_if_given_and_named_in_a_folder(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("upgrade", "model.py")  # all that is imported for it, while it may be read
    with tempfile.TemporaryDirectory() as name:  # of pytest's own folders, another user can see none
        open_folder = Path(name)
        open_folder.chmod(0o755)
        monkeypatch.chdir(open_folder)
        (open_folder / "closed").mkdir()
        for path in ("model.py", "secret.py", "closed/model.py"):
            (open_folder / path).write_text(MODEL, encoding="utf-8")
        (open_folder / "secret.py").chmod(0)
        (open_folder / "closed").chmod(0)
        try:
            with without_rights():
                given = {path: call("upgrade", path) for path in ("secret.py", "closed", "closed/model.py")}
                found = call("upgrade", ".")
        finally:
            (open_folder / "closed").chmod(0o755)
            monkeypatch.chdir(folder)
    for path, done in given.items():
        assert done.returncode == 2, done.stdout + done.stderr
        assert f"{path}: not read: it" in done.stdout
        assert "disk" not in done.stderr
    assert found.returncode == 1
    assert "secret.py: not read: it cannot be read: Permission denied" in found.stdout
    assert "closed: not read: it is a folder that cannot be read" in found.stdout
    assert "1 file searched: 1 can be rewritten" in found.stdout


ADVISED = """import torch


def train(model, loader, optimizer):
    for x in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(x.cuda()).mean()
        loss.backward()
        optimizer.step()
"""


def test_advice_is_counted_apart_and_is_no_reason_for_an_exit_code(folder: Path, call: Call) -> None:
    (folder / "model.py").write_text(ADVISED, encoding="utf-8")
    done = call("upgrade", "model.py", "--write")
    assert done.returncode == 0
    assert done.stdout.endswith("0 can be rewritten, 0 refused, 0 already fused, 1 place with advice\n")
    assert "5 train: FM105 advice: each operation" in done.stdout
    assert (folder / "model.py").read_text(encoding="utf-8") == ADVISED


THREE_RULES = (
    MODEL
    + """

def gelu(x):
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def configured(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)
"""
)


def test_all_rules_are_tested_and_written_together(folder: Path, call: Call) -> None:
    (folder / "model.py").write_text(THREE_RULES, encoding="utf-8")
    done = call("upgrade", "model.py", "--write", "--output-format", "json")
    document = json.loads(done.stdout)
    written = {each["code"]: each["tested"] for each in document["sites"] if each["written"]}
    assert written == {"FM001": True, "FM002": True, "FM003": True}
    after = (folder / "model.py").read_text(encoding="utf-8")
    assert 'F.gelu(x, approximate="tanh")' in after
    assert "lr=1e-3, fused=True)" in after
    assert call("upgrade", "model.py", "--write").returncode == 0
