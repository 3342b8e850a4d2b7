"""`flashmore demo`: the whole story, shortened; and at full length with `make test-long`."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from flashmore.cli import bench as bench_step
from flashmore.cli.parse import defaults, parse
from flashmore.cli.train import Train
from flashmore.config import PRESETS
from flashmore.runs import Run

Call = Callable[..., CompletedProcess[str]]

STEP_TIME = re.compile(r"^\W*(manual|flash)\W+\d+\.\d+\b", re.MULTILINE)
RATIO_WITH_SPREAD = re.compile(r"^\W*flash\b.*\d\.\d{3}\D+\d\.\d{3} – \d+\.\d{3}\b", re.MULTILINE)


def check(done: CompletedProcess[str], folder: Path, picture: Path) -> None:
    """Everything that the demo promises to show, whatever the numbers are."""
    assert done.returncode == 0, done.stderr
    assert re.search(r"bigram +┃ transformer", done.stdout)
    for model, attention in (("bigram", None), ("transformer", "flash")):
        result = Run.open(folder / model).read_result()
        assert result
        assert f"{result['test_loss']:.4f}" in done.stdout
        assert result["attention"] == attention
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"picture: {picture}\n" in done.stderr
    assert STEP_TIME.findall(done.stdout) == ["manual", "flash"]
    assert RATIO_WITH_SPREAD.search(done.stdout)


def next_steps(done: CompletedProcess[str]) -> dict[str, list[str]]:
    """The commands that the demo ends with, by verb."""
    lines = done.stdout.partition("What to try next:\n")[2].splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if "flashmore" in line]
    return {verb: words for _, verb, *words in commands}


def test_the_story_is_told_and_its_next_steps_work(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"max_steps": 8, "n_layer": 1, "n_embd": 16, "batch_size": 4}
    for preset in ("names", "makemore"):
        monkeypatch.setitem(PRESETS, preset, PRESETS[preset] | short)
    monkeypatch.setattr(bench_step, "BLOCKS", 2)
    monkeypatch.setattr("flashmore.benchmark.step.bench.BLOCK_SECONDS", 1e-3)
    monkeypatch.chdir(tmp_path)
    done = call("demo")
    check(done, Path("demo"), Path("demo/names.png"))

    after = next_steps(done)
    assert call("generate", *after["generate"], "--seed", 1, "--count", 2).returncode == 0
    assert call("score", *after["score"]).returncode == 0
    words = after["train"]
    assert parse(Train, "train", words, Train(defaults(words))).config.file == Path("YOUR_FILE.txt")
    assert call("compare", "--help", *after["compare"]).returncode == 0

    assert call("demo", "--picture", tmp_path / "again.png").returncode == 0, "it works when repeated"
    assert Run.open(Path("demo/bigram")).read_result() != Run.open(Path("demo/bigram-2")).read_result()


@pytest.mark.long
def test_the_story_at_full_length(process: Call, tmp_path: Path) -> None:
    done = process("demo", "--out", tmp_path / "demo", "--picture", tmp_path / "names.png")
    check(done, tmp_path / "demo", tmp_path / "names.png")
    for model, highest in (("bigram", 2.50), ("transformer", 2.15)):
        result = Run.open(tmp_path / "demo" / model).read_result()
        assert result
        assert result["test_loss"] <= highest


def test_another_kind_of_picture_is_refused_before_anything_is_trained(
    call: Call, refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ".png" in refusal(call("demo", "--picture", "names.gif"), 2)
    assert not list(tmp_path.iterdir())
