"""`flashmore explain`: options into a call, answers for people and for programs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flashmore.cli.explain import main
from flashmore.config import TrainConfig
from flashmore.data.items import Split
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import ConfigError, RunError
from flashmore.models.config import ModelConfig
from flashmore.rules import AttentionCall
from flashmore.runs import Checkpoint, Run, Settings, State
from flashmore.specs import backends

MAKEMORE = AttentionCall((32, 4, 16, 16), (32, 4, 16, 16), (32, 4, 16, 16), causal=True)
MASKED = {"causal": False}


def explained(words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*words.split(), "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    document: dict[str, Any] = json.loads(printed.out)
    return document


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("", {}),
        (
            "--batch-size 2 --n-head 6 --length 5 --head-dim 7",
            dict.fromkeys(("query", "key", "value"), (2, 6, 5, 7)),
        ),
        ("--n-kv-head 2 --gqa", {"key": (32, 2, 16, 16), "value": (32, 2, 16, 16), "gqa": True}),
        ("--source-length 9 --value-dim 3", MASKED | {"key": (32, 4, 9, 16), "value": (32, 4, 9, 3)}),
        ("--dtype bfloat16 --passes forward", {"dtype": "bfloat16", "needs_grad": False}),
        ("--passes backward --full --dropout 0.25", {"causal": False, "dropout_p": 0.25}),
        ("--mask bool", MASKED | {"mask": (16, 16)}),
        ("--mask bool --mask-dims 4", MASKED | {"mask": (32, 4, 16, 16)}),
        ("--mask bool --mask-dims 1", MASKED | {"mask": (16,)}),
        ("--mask padding", MASKED | {"mask": (32, 1, 1, 16)}),
        ("--mask bool --causal", {"mask": (16, 16)}),
        (
            "--mask float --dtype float16",
            MASKED | {"mask": (16, 16), "mask_dtype": "float16", "dtype": "float16"},
        ),
        (
            "--mask float-grad --mask-dtype float64 --mask-dims 3",
            MASKED | {"mask": (4, 16, 16), "mask_dtype": "float64", "mask_needs_grad": True},
        ),
        ("--non-contiguous --deterministic", {"unit_stride": False, "deterministic": True}),
    ],
)
def test_options_become_the_call(
    words: str, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in explained(words, capsys)["call"].items()
    }
    assert AttentionCall(**found) == replace(MAKEMORE, **changes)


def test_the_document_tells_backends_default_and_line(capsys: pytest.CaptureFixture[str]) -> None:
    document = explained("--dropout 0.1 --causal", capsys)
    told = {backend["name"]: backend for backend in document["backends"]}
    assert list(told) == list(backends())
    assert told["math"]["documentation"].startswith("https://docs.pytorch.org/")
    assert told["math"] | {"about": "", "documentation": ""} == {
        "name": "math", "usable": True, "reasons": [], "cautions": [], "about": "", "documentation": "",
    }  # fmt: skip
    assert not told["flash"]["usable"]
    assert "dropout_p = 0.1" in told["flash"]["reasons"][0]
    assert document["default"] == "math"
    assert document["device_present"] is True
    assert "with sdpa_kernel([SDPBackend.MATH]):" in document["line"]


def test_people_read_names_reasons_and_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--causal"]) == 0
    printed = capsys.readouterr().out
    assert all(backend in printed for backend in backends())
    assert "PyTorch picks: flash (PyTorch's tiled CPU kernel" in printed
    assert "PyTorch has no CPU kernel of this name (use flash" in printed
    assert printed.endswith(
        "from torch.nn.attention import SDPBackend, sdpa_kernel\n"
        "with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):\n    ...\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_here_is_answered_by_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cuda", "--dtype", "bfloat16", "--capability", "9.0", "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["default"], document["device_present"]) == (None, False)
    assert document["call"]["capability"] == [9, 0]
    assert all(backend["usable"] for backend in document["backends"])
    assert main(["--device", "cuda"]) == 0
    assert "assume compute capability 8.0" in capsys.readouterr().out


def make_run(path: Path, model: str, **options: Any) -> Path:
    vocabulary = Vocabulary.from_items(["abc"])
    sizes = ModelConfig(model, vocabulary.size, block_size=9, n_head=2, n_embd=24, attention_dropout=0.5)
    made = TrainConfig(**{"model": model, "attention_dropout": 0.5, "preset": "makemore", **options})
    split = Split(("abcabcab",), (), (), None)
    settings = Settings(made.to_json(), made.to_json(), sizes, vocabulary, split, None, {})
    with Run.create(path, settings) as run:
        run.begin(Checkpoint({}, {}, State(0, 1)))
    return path


def test_a_run_gives_its_shape_dtype_and_dropout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", "transformer", batch_size=8, dtype="bfloat16", device="cpu")
    assert main(["--run", str(run), "--json"]) == 0
    call = json.loads(capsys.readouterr().out)["call"]
    assert (call["query"], call["dtype"], call["device"]) == ([8, 2, 9, 12], "bfloat16", "cpu")
    assert (call["causal"], call["dropout_p"], call["needs_grad"]) == (True, 0.5, True)


def test_options_beside_a_run_ask_what_would_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", "transformer")
    document = explained(f"--run {run} --dropout 0 --length 4", capsys)
    assert document["call"]["query"] == [32, 2, 4, 12]
    assert document["default"] == "flash"


def test_a_run_without_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a bigram"):
        main(["--run", str(make_run(tmp_path / "run", "bigram"))])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        main(["--run", str(tmp_path)])


@pytest.mark.parametrize(
    "words",
    [
        "--batch-size 0",
        "--length -3",
        "--head-dim 0",
        "--dropout 1.5",
        "--dropout nan",
        "--n-kv-head 3",
        "--n-kv-head 3 --gqa",
        "--mask bool --mask-dims 5",
        "--mask bool --mask-dtype float16",
        "--mask-dtype float16",
        "--causal --full",
        "--mask padding --mask-dims 3",
        "--capability ten",
        "--capability 9",
    ],
)
def test_calls_that_make_no_sense_are_refused(words: str) -> None:
    with pytest.raises(ConfigError):
        main(words.split())


def test_options_that_do_not_exist_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--mask", "triangle"])
    assert stopped.value.code == 2


def test_help_is_fast_because_it_needs_no_torch() -> None:
    code = (
        "import sys, flashmore.cli.explain as command\n"
        "try: command.main(['--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--source-length" in done.stdout
