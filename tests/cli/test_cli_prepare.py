"""`flashmore prepare`, and training on what it wrote."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from forks import Forks

TEXT = "the cat sat on the mat; déjà vu.\n" * 60
SMALL = ("--mode", "text", "--block-size", 8, "--n-layer", 1, "--n-head", 1, "--n-embd", 8, "--max-steps", 4)
ON_CPU = ("--device", "cpu", "--attention", "sdpa")
Call = Callable[..., CompletedProcess[str]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def ids(text: Path, tmp_path: Path, call: Call) -> Path:
    path = tmp_path / "text.bin"
    done = call("prepare", text, "--mode", "text", "--out", path)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"prepared {path} and text.bin.json: {len(TEXT):,} characters, 19 different\n"
    return path


def test_a_run_on_a_prepared_text_is_the_run_on_the_text(
    text: Path, ids: Path, tmp_path: Path, call: Call, document: Callable[..., Any]
) -> None:
    losses = {
        file: document("train", file, *SMALL, *ON_CPU, "--out", tmp_path / file.suffix[1:])["val_loss"]
        for file in (text, ids)
    }
    assert losses[ids] == losses[text]
    text.unlink()
    run = tmp_path / "bin"
    assert not (run / "tokens.bin").exists(), "the ids are used in place"
    assert document("train", "--resume", run, "--max-steps", 6)["steps"] == 6
    options = ("--length", 30, "--prefix", "cat", "--seed", 1)
    (made,) = document("generate", run, *options)["texts"]
    assert len(made) == 30
    assert set(made) <= set(TEXT)
    pack = tmp_path / "text.pack"
    assert call("pack", run, "--out", pack).returncode == 0
    assert document("generate", pack, *options)["texts"] == [made]


def test_what_a_run_on_a_prepared_text_lacks_is_told(
    ids: Path, tmp_path: Path, call: Call, document: Callable[..., Any], refusal: Callable[..., str]
) -> None:
    assert "omit --vocab-size" in refusal(call("train", ids, *SMALL, "--vocab-size", 100), 2)
    document("train", ids, *SMALL, *ON_CPU, "--out", tmp_path / "run")
    data = ids.read_bytes()
    ids.write_bytes(data[:-2] + data[:2])
    assert "the original file" in refusal(call("train", "--resume", tmp_path / "run", "--max-steps", 6), 2)
    ids.write_bytes(data[:-2])
    assert "prepare the text again" in refusal(call("train", ids, *SMALL), 2)
    assert "remove both" in refusal(call("prepare", tmp_path / "text.txt", "--mode", "text", "--out", ids), 2)


def test_the_output_has_a_name_that_train_knows(text: Path, call: Call, refusal: Callable[..., str]) -> None:
    assert "ends in .bin" in refusal(call("prepare", text, "--out", text.with_name("ids")), 2)
    assert "another --out" in refusal(call("prepare", text, "--out", text / "ids.bin"), 1)
    assert "No such file" in refusal(call("prepare", "absent", "--out", text.with_name("ids.bin")), 2)


SLOW = """
import sys, time
from flashmore.data import prepared
whole = prepared.Encoder.encode
def encode(self, text):
    print("!", flush=True)
    time.sleep(0.01)
    return whole(self, text)
prepared.Encoder.encode = encode
from flashmore.data.text import read_pieces
read_pieces.__defaults__ = (16,)
from flashmore.cli.main import main
sys.exit(main(["prepare", *sys.argv[1:]]))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_says_how_far_it_came(
    text: Path, tmp_path: Path, call: Call, environment: dict[str, str], forks: Forks
) -> None:
    program, said = tmp_path / "slow.py", tmp_path / "said"
    program.write_text(SLOW, encoding="utf-8")
    reader, writer = os.pipe()
    with Path(os.devnull).open() as nothing, said.open("wb") as errors:
        words = (program, text, "--mode", "text", "--out", tmp_path / "text.bin")
        process = forks.start(words, environment, (nothing.fileno(), writer, errors.fileno()))
        os.close(writer)
        assert os.read(reader, 1)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait() == 130
    os.close(reader)
    told = said.read_text(encoding="utf-8")
    assert told.startswith("Interrupted a")
    assert told.endswith("Run the same command again to continue.\n")
    assert call("prepare", text, "--mode", "text", "--out", tmp_path / "text.bin").returncode == 0


@pytest.fixture
def names(names_file: Path, tmp_path: Path, call: Call) -> Path:
    path = tmp_path / "names.bin"
    assert call("prepare", names_file, "--out", path).returncode == 0
    return path


TINY = ("--model", "bigram", "--device", "cpu", "--ngram-smoothing", 0)


def test_a_prepared_list_trains_resumes_and_generates(
    names: Path, tmp_path: Path, call: Call, document: Callable[..., Any]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    words = ("train", names, *TINY, "--max-steps", 20, "--out")
    document(*words, first)
    done = call(*words, second)
    assert "items on disk" in done.stderr
    assert "None" not in done.stdout
    assert document(*words, first)["steps"] == 20, "the same command finds its run"
    losses = [document("train", "--resume", path, "--max-steps", 30)["test_loss"] for path in (first, second)]
    assert losses[0] == losses[1] > 0
    made = document("generate", first, "--count", 5, "--seed", 1)["names"]
    assert len(made) == 5
    assert {name["novelty"] for name in made} == {"unknown"}
    assert call("score", first, "bana").returncode == 0
    pack = tmp_path / "names.pack"
    assert call("pack", first, "--out", pack).returncode == 0
    assert document("generate", pack, "--count", 5, "--seed", 1)["names"] == made
    assert str(tmp_path).encode() not in pack.read_bytes()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("generate", "RUN", "--new-only"), "a prepared list without items"),
        (("generate", "RUN", "--nearest"), "a prepared list without items"),
        (("pack", "RUN", "--with-items", "--out", "a.pack"), "a run on a prepared list"),
        (("train", "LIST", "--mode", "text"), "a prepared list"),
        (("train", "LIST", "--column", "name"), "name"),
        (("train", "LIST", "--split", "makemore"), "'makemore'"),
        (("train", "LIST", "--split", "99/1/0", "--split-seed", 4), "0"),
        (("train", "LIST", "--ngram-smoothing", 0.4), "--ngram-smoothing 0.4"),
        (("train", "LIST", "--ngram-items", 0.5), "--ngram-items 0.5"),
        (("bench", "step", "LIST"), "a prepared list"),
    ],
)
def test_what_a_prepared_list_does_not_support_is_refused(
    words: tuple[object, ...],
    found: str,
    names: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Call,
    refusal: Callable[..., str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    if "RUN" in words:
        assert call("train", names, *TINY, "--max-steps", 4, "--out", run).returncode == 0
    done = call(*({"RUN": run, "LIST": names}.get(str(word), word) for word in words))
    assert found in refusal(done, 2, after_progress=True)


def test_a_prepared_list_that_changed_is_refused(
    names: Path, tmp_path: Path, call: Call, refusal: Callable[..., str]
) -> None:
    run = tmp_path / "run"
    assert call("train", names, *TINY, "--max-steps", 4, "--out", run).returncode == 0
    data = names.read_bytes()
    names.write_bytes(data[2:] + data[:2])
    assert "the original file" in refusal(call("train", "--resume", run, "--max-steps", 6), 2)
    names.unlink()
    assert "No such file" in refusal(call("train", "--resume", run, "--max-steps", 6), 2)


def test_verify_checks_the_file_that_a_run_uses_in_place(
    ids: Path, names: Path, tmp_path: Path, call: Call
) -> None:
    for number, words in enumerate(((ids, *SMALL, *ON_CPU), (names, *TINY, "--max-steps", 4))):
        run, file = tmp_path / str(number), (ids, names)[number]
        assert call("train", *words, "--out", run).returncode == 0
        done = call("verify", run)
        assert (done.returncode, f"{file}: ok" in done.stdout.replace("\n", "")) == (0, True)
        data = file.read_bytes()
        file.write_bytes(data[2:] + data[:2])
        done = call("verify", run)
        assert (done.returncode, f"{file}: different ones" in done.stdout.replace("\n", "")) == (1, True)
        file.unlink()
        assert call("verify", run).returncode == 1
