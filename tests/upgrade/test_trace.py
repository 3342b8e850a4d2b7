"""Real inputs: an example or a script runs under watch, and sites are replayed on what they got."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flashmore.upgrade.site import Fragment, Input, Site
from flashmore.upgrade.trace.tracer import Source, verify_traced
from flashmore.upgrade.trace.user import UserCodeFailed, load_example
from flashmore.upgrade.verify.result import WHOLE, Verification
from flashmore.upgrade.verify.verifier import Verifier

MODEL = """\
import math
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.drop = nn.Dropout(0.2)
        self.scale = 0.5

    def forward(self, x):
        q, k, v = map(torch.clone, self.qkv(x).chunk(3, -1))
        q *= self.scale
        att = q @ k.transpose(-2, -1)
        att = self.drop(att.softmax(-1))
        return att @ v

    def other(self, q, k, v):
        return (q @ k.mT).softmax(-1) @ v


def made():
    torch.manual_seed(0)
    return Attention(), torch.randn(3, 7, 8)


def named():
    return Attention(), {"x": torch.randn(2, 4, 8)}


def raises():
    raise LookupError("no weights here")


def exits():
    raise SystemExit(5)


def hangs():
    import time
    time.sleep(600)


def dies():
    import os
    os.kill(os.getpid(), 9)


def leaves():
    import os
    os._exit(0)


def speechless():
    class Odd(Exception):
        def __str__(self):
            raise ValueError

    raise Odd


def wants(x):
    return made()


constant = 5


def number():
    return 7


def no_model():
    return (lambda x: x), torch.zeros(1)


def wrong_input():
    return Attention(), torch.zeros(3, 5)


def no_inputs():
    return Attention(), 3
"""

TRAIN = """\
import sys
import torch
from model import Attention

assert __name__ == "__main__"
steps = int(sys.argv[sys.argv.index("--steps") + 1])
model = Attention()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(steps):
    model(torch.randn(2, 5 + step, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
if "--fail" in sys.argv:
    raise RuntimeError("the disk is full")
while "--hang" in sys.argv:
    pass
"""

INPUTS = (
    *(Input(n, n, "tensor", None) for n in "qkv"),
    Input("scale", "self.scale", "scale", None),
    Input("drop", "self.drop", "dropout", None),
)
OLD = """def old(q, k, v, scale, drop):
    q *= scale
    return drop((q @ k.transpose(-2, -1)).softmax(-1)) @ v
"""
NEW = """def new(q, k, v, scale, drop):
    p = drop.p if drop.training else 0.0
    return F.scaled_dot_product_attention(q, k, v, scale=scale, dropout_p=p)
"""


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Site, Site]:
    """The site that runs, and one that nothing calls."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    (tmp_path / "train.py").write_text(TRAIN, encoding="utf-8")
    one = Site("model.py", 15, 18, "Attention.forward", "rewritten", "", fragment=Fragment(INPUTS, OLD, NEW))
    plain = Fragment(
        INPUTS[:3],
        "def old(q, k, v):\n    return (q @ k.mT).softmax(-1) @ v\n",
        "def new(q, k, v):\n    return F.scaled_dot_product_attention(q, k, v, scale=1.0)\n",
    )
    return one, Site("model.py", 21, 21, "Attention.other", "rewritten", "", fragment=plain)


def names(verification: Verification) -> list[str]:
    return [case.name for case in verification.cases]


def changed(sites: tuple[Site, Site], line: str) -> dict[Path, str]:
    """The model's file with one line instead of those of the first site."""
    lines = MODEL.splitlines(keepends=True)
    return {Path(sites[0].path): "".join([*lines[:15], line, *lines[18:]])}


CALL = (
    "        return torch.nn.functional.scaled_dot_product_attention(\n"
    "            q, k, v, dropout_p=self.drop.p if self.drop.training else 0.0, scale=1.0\n        )\n"
)


def test_an_example_tests_what_it_reaches_on_what_it_gives(
    sites: tuple[Site, Site], verifier: Verifier
) -> None:
    wrong = replace(sites[0], fragment=Fragment(INPUTS, OLD, NEW.replace("scale=scale, ", "")))
    source = Source(example="model:made")
    traced = verify_traced([*sites, wrong], source, rewritten=changed(sites, CALL), verifier=verifier)
    reached, other, refuted = traced.verifications
    assert traced.problem is None
    assert reached.passed, reached.why_not
    assert all("q (3, 7, 8) float32" in name and "training" in name for name in names(reached)[:-1])
    assert names(reached)[-1] == WHOLE
    assert {"out 0", "d qkv.weight", "d qkv.bias"} == {tensor.name for tensor in reached.cases[-1].tensors}
    assert "the inputs from --example model:made" in reached.summary()
    assert "including the gradients of 2 weights" in reached.summary()
    assert not other.passed
    assert "not reached" in str(other.why_not)
    assert refuted.refuted


def test_right_lines_in_a_wrong_file_are_refuted(
    sites: tuple[Site, Site], tmp_path: Path, verifier: Verifier
) -> None:
    rewritten = changed(sites, CALL.replace("scale=1.0", "scale=0.9"))
    source = Source(example="model:named")
    (verification,) = verify_traced(sites[:1], source, rewritten=rewritten, verifier=verifier).verifications
    assert verification.refuted
    assert str(verification.why_not).startswith(WHOLE)
    assert (tmp_path / "model.py").read_text(encoding="utf-8") == MODEL


def test_a_script_tests_every_shape_and_what_it_showed_before_it_failed_counts(
    sites: tuple[Site, Site], verifier: Verifier
) -> None:
    traced = verify_traced(sites, Source(run=("train.py", "--steps", "2", "--fail")), verifier=verifier)
    assert "the disk is full" in str(traced.problem)
    assert traced.verifications[0].passed, traced.verifications[0].why_not
    assert any("q (2, 5, 8)" in name for name in names(traced.verifications[0]))
    assert any("q (2, 6, 8)" in name for name in names(traced.verifications[0]))
    assert "the disk is full" in str(traced.verifications[1].why_not)


@pytest.mark.long
def test_what_a_script_showed_before_it_hung_counts(sites: tuple[Site, Site], verifier: Verifier) -> None:
    traced = verify_traced(sites, Source(run=("train.py", "--steps", "1", "--hang")), verifier, seconds=20)
    assert "longer than 20 s" in str(traced.problem)
    assert traced.verifications[0].passed
    assert not traced.verifications[1].passed


WRONG = {
    "number": "returned a int",
    "no_model": "a function as the model",
    "no_inputs": "a int as the inputs",
    "missing": "the module has no such name; expected a function without arguments",
    "constant": "the module has a int of this name; expected a function without arguments",
    "wants": "the module has a function of this name; expected a function without arguments",
    "speechless": "Odd: no message",
    "raises": "LookupError: no weights here",
    "exits": "SystemExit: 5",
}


@pytest.mark.parametrize("function", WRONG)
def test_an_example_that_returns_no_model_is_told(
    sites: tuple[Site, Site], function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "model", raising=False)
    with pytest.raises(UserCodeFailed) as failed:
        load_example(f"model:{function}")
    assert WRONG[function] in str(failed.value)


PROBLEMS = {
    "dies": "signal 9",
    "wrong_input": "model.py, line 14)",
    "leaves": "without an error",
    "hangs": "longer than 4 s",
}


@pytest.mark.parametrize("function", PROBLEMS)
def test_an_example_that_fails_is_told(sites: tuple[Site, Site], function: str, verifier: Verifier) -> None:
    source = Source(example=f"model:{function}")
    traced = verify_traced(sites, source, verifier, seconds=4 if function == "hangs" else 60)
    assert PROBLEMS[function] in str(traced.problem)
    assert not any(verification.passed for verification in traced.verifications)
    assert all(PROBLEMS[function] in str(verification.why_not) for verification in traced.verifications)


def test_the_users_modules_are_imported_by_a_run_alone(sites: tuple[Site, Site], tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("open('trap', 'w')\n" + MODEL, encoding="utf-8")
    code = "import sys; from flashmore.upgrade.trace import tracer; sys.exit('model' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert not (tmp_path / "trap").exists()


def test_pythonpath_is_the_programs_and_not_ours(
    sites: tuple[Site, Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verifier: Verifier
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    # Nothing in the program imports these; the process that watches it does.
    for name in ("json", "inspect", "runpy", "safetensors"):
        (theirs / f"{name}.py").write_text("raise SystemExit('a module of the user was imported')\n")
    (theirs / "of_mine.py").write_text("steps = 1\n")
    model = tmp_path / "model.py"
    model.write_text(f"{MODEL}\nimport of_mine\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", "theirs")
    for source in (Source(example="model:made"), Source(run=("train.py", "--steps", "1"))):
        traced = verify_traced(sites[:1], source, verifier=verifier)
        assert traced.problem is None
        assert traced.verifications[0].passed, traced.verifications[0].why_not
