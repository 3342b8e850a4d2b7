"""`flashmore generate` of a run on one long text: printed while it is sampled, on a terminal and in pipes."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from typing import Any

import pytest

from flashmore.config import TrainConfig
from flashmore.training.loop import train
from forks import Forks

Call = Callable[..., CompletedProcess[str]]
ENDLESS = ("--length", 10**7)
"""Minutes of text."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose text has characters that reorder a line."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("ab\u202e[31mcd\u2066\n" * 100, encoding="utf-8")
    sizes: dict[str, Any] = {"block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8, "batch_size": 4}
    train(
        TrainConfig(
            file=folder / "text.txt", mode="text", max_steps=4, device="cpu", attention="sdpa", **sizes
        ),
        folder / "run",
    )
    return folder / "run"


def shown_as(text: str) -> str:
    return text.replace("\u202e", "\\u202e").replace("\u2066", "\\u2066")


def read_some(file: int, wanted: int) -> bytes:
    seen = b""
    while len(seen) < wanted and (piece := os.read(file, wanted - len(seen))):
        seen += piece
    return seen


def read_rest(file: int) -> bytes:
    seen = b""
    with suppress(OSError):  # how Linux says that the other end of a terminal is closed
        while piece := os.read(file, 65536):
            seen += piece
    os.close(file)
    return seen


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
@pytest.mark.parametrize("options", [(), ("--stride", 4), ("--count", 3)], ids=str)
def test_text_is_printed_while_it_is_sampled_until_ctrl_c(
    kind: str,
    options: tuple[object, ...],
    run: Path,
    environment: dict[str, str],
    forks: Forks,
    document: Callable[..., Any],
) -> None:
    pty = pytest.importorskip("pty", reason="needs the terminals of Unix")
    length = ("--length", 10**6)
    words = ("-m", "flashmore", "generate", run, *length, "--prefix", "ab\u202e", *options)
    ours, theirs = os.pipe() if kind == "pipe" else pty.openpty()
    with TemporaryFile() as err:
        running = forks.start(words, environment, (None, theirs, err.fileno()))
        os.close(theirs)
        begun = read_some(ours, 1000)
        assert not running.ended(0)
        os.kill(running.pid, signal.SIGINT)
        text = (begun + read_rest(ours)).decode().replace("\r\n", "\n")
        assert running.wait() == 130
        err.seek(0)
        told, interrupted = err.read().decode().splitlines()
    assert interrupted == "interrupted"
    assert text.startswith("ab\\u202e")
    assert text.endswith("\n")
    assert text.isascii()
    seed = told.rpartition("--seed ")[2]
    again = document("generate", run, "--length", 1500, "--prefix", "ab\u202e", "--seed", seed, *options)
    whole = shown_as(again["prefix"] + again["texts"][0])
    assert whole.startswith(text[: min(len(text) - 1, len(whole))])


def test_a_reader_that_leaves_ends_the_text(run: Path, environment: dict[str, str], forks: Forks) -> None:
    """`flashmore generate RUN … | head -c 100`."""
    words = ("-m", "flashmore", "generate", run, *ENDLESS, "--seed", 1)
    ours, theirs = os.pipe()
    with TemporaryFile() as err:
        running = forks.start(words, environment, (None, theirs, err.fileno()))
        os.close(theirs)
        read_some(ours, 100)
        os.close(ours)
        assert running.wait() == 1
        err.seek(0)
        assert err.read() == b""


def test_several_texts_have_the_seeds_that_follow(
    run: Path, call: Call, document: Callable[..., Any]
) -> None:
    given = ("generate", run, "--length", 30, "--prefix", "cd", "--temperature", 2)
    made = document(*given, "--seed", 5, "--count", 3)
    alone = [document(*given, "--seed", seed)["texts"] for seed in (5, 6, 7)]
    assert alone == [[text] for text in made["texts"]]
    assert len(set(made["texts"])) == 3
    shown = call(*given, "--seed", 5, "--count", 3)
    parts = (shown_as(f"cd{text}") for text in made["texts"])
    assert shown.stdout == "\n---------------\n".join(parts) + "\n"
    assert shown.stderr == ""
    assert call(*given, "--count", 2).stderr.startswith("to generate the same texts again: --seed ")


def test_the_largest_seed_is_followed_by_0(run: Path, document: Callable[..., Any]) -> None:
    given = ("generate", run, "--length", 30, "--temperature", 2)
    made = document(*given, "--seed", 2**63 - 1, "--count", 2)
    assert made["texts"][1:] == document(*given, "--seed", 0)["texts"]


def test_the_stride_is_how_far_the_window_moves(run: Path, document: Callable[..., Any]) -> None:
    def text(*options: object) -> str:
        given = ("generate", run, "--length", 200, "--seed", 1, "--temperature", 1.5)
        return str(document(*given, *options)["texts"][0])

    assert text("--stride", 4) == text() != text("--stride", 8), "half of the context, 8, by default"
    assert text() != text("--stride", 1)
    assert text("--stride", 8)[:8] == text()[:8], "until the context is full"
