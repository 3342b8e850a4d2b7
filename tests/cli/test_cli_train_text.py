"""`flashmore train FILE --mode text` and what the other commands make of its run."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

PATTERN = "abcdefgh\n"
SMALL = ("--mode", "text", "--block-size", 8, "--n-layer", 1, "--n-head", 1, "--n-embd", 8, "--max-steps", 4)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(PATTERN * 100, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(
    file: Path, tmp_path_factory: pytest.TempPathFactory, process: Callable[..., CompletedProcess[str]]
) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    done = process("train", file, *SMALL, "--device", "cpu", "--attention", "sdpa", "--out", path)
    assert done.returncode == 0, done.stderr
    assert "720 train, 90 validation, 90 test characters in windows of 8" in done.stderr
    return path


def test_a_run_tells_its_losses(file: Path, tmp_path: Path, document: Callable[..., Any]) -> None:
    result = document(
        "train", file, *SMALL, "--device", "cpu", "--attention", "sdpa", "--out", tmp_path / "run"
    )
    assert 0 < result["val_loss"] < 5
    assert 0 < result["test_loss"] < 5
    assert result["steps"] == 4


def test_the_advice_is_to_generate_what_the_run_is_on(
    file: Path, tmp_path: Path, call: Callable[..., CompletedProcess[str]]
) -> None:
    tokens, run = tmp_path / "tokens.bin", tmp_path / "run"
    (np.arange(900, dtype="<u2") % 9).tofile(tokens)
    options = (*SMALL, "--device", "cpu", "--attention", "sdpa", "--out")
    assert call("train", file, *options, run).stdout.endswith(
        f"\nto generate more text: flashmore generate {run}\n"
    )
    resumed = call("train", "--resume", run, "--max-steps", 6)
    assert resumed.stdout.endswith(f"\nto generate more text: flashmore generate {run}\n")
    assert "flashmore generate" not in call("train", tokens, *options, tmp_path / "ids").stdout


def test_no_advice_for_a_text_is_a_split_of_items(
    file: Path, call: Callable[..., CompletedProcess[str]], refusal: Callable[..., str]
) -> None:
    valid = refusal(call("train", file, "--mode", "text", "--split", "makemore"), 2).splitlines()[-1]
    assert "80/10/10" in valid
    assert valid.endswith("or makemore, for items only")


def test_resume_changes_the_number_of_steps(file: Path, tmp_path: Path, document: Callable[..., Any]) -> None:
    path = tmp_path / "run"
    document("train", file, *SMALL, "--device", "cpu", "--attention", "sdpa", "--out", path)
    assert document("train", "--resume", path, "--max-steps", 6)["steps"] == 6


def test_generate_gives_text(
    run: Path, call: Callable[..., CompletedProcess[str]], document: Callable[..., Any]
) -> None:
    made = document("generate", run, "--length", 30, "--prefix", "abc", "--seed", 1)
    (text,) = made["texts"]
    assert (made["prefix"], len(text), made["seed"]) == ("abc", 30, 1)
    assert set(text) <= set(PATTERN)
    shown = call("generate", run, "--length", 30, "--prefix", "abc", "--seed", 1)
    assert shown.stdout == made["prefix"] + text + "\n"
    unseeded = call("generate", run, "--length", 5)
    assert "--seed" in unseeded.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("generate", "RUN", "--prefix", "XYZ"), "'X' (U+0058)"),
        (("generate", "RUN", "--length", 0), "0"),
        (("generate", "RUN", "--stride", 0), "0"),
        (("generate", "RUN", "--stride", 9), "9"),
        (("generate", "RUN", "--length", 10**6, "--count", 11), "1000000 characters of each of 11 texts"),
        (("generate", "RUN", "--count", 10**8), "500 characters of each of 100000000 texts"),
        (("generate", "RUN", "--new-only"), "a run on one long text"),
        (("score", "RUN", "abc"), "a run on one long text"),
        (("compare", "RUN"), "a run on one long text"),
        (("train", "FILE", "--mode", "text", "--block-size", 1000), "900 in all"),
        (("train", "FILE", "--mode", "text", "--vocab-size", 100), "whose characters are the vocabulary"),
        (("train", "FILE", "--mode", "text", "--encoding", "klingon"), "'klingon'"),
        (("train", "FILE", "--block-size", 8), "--mode items"),
        (("train", "FILE", "--mode", "text", "--block-size", 0), "0"),
        (("train", "--preset", "shakespeare"), "no FILE"),
        (("train", "--mode", "text", "--vocab-size", 50, "--block-size", 10**7), "block_size = 10000000"),
        (("train", "FILE", "--preset", "gpt2-124m"), "whose characters are the vocabulary"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: tuple[object, ...],
    found: str,
    run: Path,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., CompletedProcess[str]],
    refusal: Callable[..., str],
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"RUN": run, "FILE": file}
    message = refusal(call(*(named.get(str(word), word) for word in words)), 2)
    assert found in message
    assert list(tmp_path.iterdir()) == []


def test_a_bin_file_trains_and_has_no_characters_to_generate(
    tmp_path: Path,
    call: Callable[..., CompletedProcess[str]],
    document: Callable[..., Any],
    refusal: Callable[..., str],
) -> None:
    tokens = tmp_path / "tokens.bin"
    (np.arange(900, dtype="<u2") % 9).tofile(tokens)
    words = ("train", tokens, *SMALL, "--vocab-size", 16, "--device", "cpu", "--attention", "sdpa")
    document(*words, "--out", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["vocab_size"] == 16
    assert "a run on ids, without their characters" in refusal(call("generate", tmp_path / "run"), 2)


def test_bench_step_takes_items_alone(
    file: Path, call: Callable[..., CompletedProcess[str]], refusal: Callable[..., str]
) -> None:
    done = call("bench", "step", file, "--mode", "text")
    assert "found: --mode text" in refusal(done, 2, after_progress=True)


@pytest.mark.skipif(os.name != "posix", reason="needs file names that are bytes")
def test_a_working_directory_that_is_not_utf_8(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    process: Callable[..., CompletedProcess[str]],
    refusal: Callable[..., str],
) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    (folder / "text.txt").write_bytes(file.read_bytes())
    (folder / "names.txt").write_text("anna\nben\ncleo\ndora\nemma\nfritz\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    words = ("--model", "bigram", "--device", "cpu", "--max-steps", 4, "--out", "run")
    message = refusal(process("train", "text.txt", "--mode", "text", "--block-size", 8, *words), 2)
    assert r"\udcff" in message
    assert not (folder / "run").exists()
    done = process("train", "names.txt", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == "run"
    done = process("train", "--resume", "run", "--max-steps", 6)
    assert done.returncode == 0, done.stderr
