"""A package of somebody else's adds a model and an attention backend, and everything works with them."""

import json
import os
import subprocess
import sys

import pytest

SPECS = """
from flashmore.rules import Rule, on
from flashmore.specs import BackendSpec, ModelSpec

MODEL = ModelSpec("ema", "extra_code:Ema", "an average of all characters, the last ones most")
BACKEND = BackendSpec(
    "rowwise", "extra_code:rowwise", "one query after the other",
    rules=(
        Rule(on("cpu", "rowwise"), lambda call: call.mask is not None, "rowwise takes no mask", "use manual"),
    ),
    color="#123456",
)
"""
CODE = """
import torch
from torch import nn


class Ema(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, ids):
        self.config.check_length(ids.size(1))
        x, state, states = self.dropout(self.wte(ids)), 0.0, []
        for t in range(ids.size(1)):
            state = 0.5 * state + 0.5 * x[:, t]
            states.append(state)
        return self.lm_head(torch.stack(states, dim=1))


def rowwise(q, k, v, *, mask, causal, scale, dropout_p):
    if mask is not None:
        raise RuntimeError("no mask")
    scale = q.size(-1) ** -0.5 if scale is None else scale
    rows = []
    for t in range(q.size(2)):
        end = t + 1 if causal else k.size(2)
        weights = (q[:, :, t : t + 1] @ k[:, :, :end].transpose(-2, -1) * scale).softmax(-1)
        rows.append(nn.functional.dropout(weights, dropout_p).to(v.dtype) @ v[:, :, :end])
    return torch.cat(rows, dim=2)
"""
ENTRY_POINTS = """
[flashmore.models]
ema = extra_specs:MODEL

[flashmore.backends]
rowwise = extra_specs:BACKEND
"""
COMMANDS = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from flashmore.cli.main import main

ended = []
for words in json.loads(sys.argv[1]):
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        ended.append((main(words), out, err))
json.dump([(code, out.getvalue(), err.getvalue()) for code, out, err in ended], sys.stdout)
"""
"""Several commands in one process, which imports torch once."""
Words = tuple[str, ...]
SMALL = ("--max-steps", "4", "--eval-interval", "2", "--device", "cpu", "--speedups", "none")
TINY = ("--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--device", "cpu")
EXPLAIN = ("explain", "--device", "cpu", "--length", "8", "--json")
GIVEN: dict[str, Words] = {
    "help": ("train", "--help"),
    "model": ("train", "--model", "ema", *SMALL, "--out", "run"),
    "resumed": ("train", "--resume", "run", "--max-steps", "6"),
    "generated": ("generate", "run", "--count", "3", "--json"),
    "scored": ("score", "run", "anna"),
    "backend": ("train", *TINY, *SMALL[:-4], "--attention", "rowwise", "--out", "attended"),
    "compared": ("compare", "run", "attended", "--count", "1", "--json"),
    "plain": EXPLAIN,
    "masked": (*EXPLAIN, "--mask", "bool"),
    "chosen": ("choose", "--length", "8", "--batch-size", "2", "--device", "cpu", "--json"),
    "step": (
        *("bench", "step", *TINY, "--batch-size", "4", "--variants", "manual", "rowwise", "--blocks", "3"),
        *("--out", "step.json", "--picture", "step.svg"),
    ),
    "attention": (
        *("bench", "attention", "--length", "16", "--batch-size", "1", "--n-head", "2", "--head-dim", "8"),
        *("--backends", "manual", "rowwise", "--seconds", "1", "--device", "cpu"),
        *("--out", "attention.json", "--picture", "attention.svg"),
    ),
    "report": ("report", "step.json", "attention.json", "--out", "report.html"),
    "refused": ("train", "--model", "ema", "--n-head", "2"),
}
"""In this order; all but the last succeed."""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command printed, in a folder, with the other package installed; of the last, its message."""
    packages, folder = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("folder")
    (packages / "extra_specs.py").write_text(SPECS)
    (packages / "extra_code.py").write_text(CODE)
    information = packages / "extra-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    before = [path for path in [os.environ.get("PYTHONPATH")] if path]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*before, str(packages)]),
        "FLASHMORE_CACHE": str(folder / "cache"),
    }

    program = [sys.executable, "-c", COMMANDS, json.dumps([*GIVEN.values()])]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    ended = dict(zip(GIVEN, json.loads(done.stdout), strict=True))
    assert {name: code for name, (code, _, _) in ended.items() if code} == {"refused": 2}, ended
    return {name: err if code else out for name, (code, out, err) in ended.items()}


def test_its_model_is_trained_resumed_and_used(printed: dict[str, str]) -> None:
    assert "ema" in printed["help"]
    assert len(json.loads(printed["generated"])["names"]) == 3
    assert printed["scored"]
    assert json.loads(printed["compared"])[0]["model"] == "ema"
    assert "--n-head" in printed["refused"]


def test_its_backend_trains_a_transformer(printed: dict[str, str]) -> None:
    assert json.loads(printed["compared"])[1]["attention"] == "rowwise"


def test_its_rules_are_explained(printed: dict[str, str]) -> None:
    (plain,), (masked,) = (
        [backend for backend in json.loads(printed[name])["backends"] if backend["name"] == "rowwise"]
        for name in ("plain", "masked")
    )
    assert plain["usable"]
    assert masked["reasons"] == ["rowwise takes no mask (use manual)"]


def test_its_backend_is_measured_and_reported(printed: dict[str, str]) -> None:
    assert "rowwise" in json.dumps(json.loads(printed["chosen"]))
