"""The two paths in docs/architecture.md are what a training run does."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import flashmore
from flashmore.cli.train import main
from flashmore.runs import Run

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
SOURCE = Path(flashmore.__file__).parent
STEP = re.compile(r"^\d+\. `([\w/]+\.py)`: (.*)$", re.MULTILINE)
FUNCTION = re.compile(r"`([\w.]+)`")
BESIDE = {
    "files.py", "data/text.py", "data/inputs.py", "data/overview.py", "memory.py", "training/memory.py",
    "models/config.py", "config.py", "specs.py", "training/fit.py", "training/optimizers.py",
    "models/ngram.py", "training/result.py", "errors.py",
}  # fmt: skip
"""Decoding, remarks, checks of sizes, memory and options, dropout, n-grams, learning rates: on the way."""
Calls = list[tuple[str, str]]


def path(title: str) -> list[tuple[str, list[str]]]:
    """Each file of a path and its functions."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    return [(file, FUNCTION.findall(words)) for file, words in STEP.findall(section)]


@contextmanager
def recorded() -> Iterator[Calls]:
    """The file and the qualified name of every call of ours, in order."""
    calls: Calls = []

    @cache  # of millions of calls, most are of few functions
    def named(code: CodeType) -> tuple[str, str] | None:
        file = Path(code.co_filename)
        return (
            (file.relative_to(SOURCE).as_posix(), code.co_qualname) if file.is_relative_to(SOURCE) else None
        )

    def record(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (found := named(frame.f_code)) is not None:
            calls.append(found)

    sys.setprofile(record)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def train(folder: Path, *options: str) -> Calls:
    names = folder / "names.txt"
    names.write_text("\n".join(("anna", "bella", "carla", "dora", "eva", "fiona")), encoding="utf-8")
    sizes = ["--n-layer", "1", "--n-embd", "8", "--n-head", "1", "--max-steps", "1", "--device", "cpu"]
    with recorded() as calls:
        code = main([str(names), "--out", str(folder / "run"), "--json", *sizes, *options])
    assert code == 0
    return calls


def require_in_order(title: str, calls: Calls, *, constructed: str = "") -> None:
    """Every function of the path is called, that of each file after that of the file before."""
    at = 0
    for file, functions in path(title):
        for number, function in enumerate(functions):
            name = f"{function}.__post_init__" if function == constructed else function
            assert (file, name) in calls[at:], f"{file}: {function} is not called, or too early"
            if number == 0:
                at = calls.index((file, name), at)


def test_a_name_takes_the_path_that_is_documented_to_the_loss(tmp_path: Path) -> None:
    calls = train(tmp_path, "--attention", "manual", "--speedups", "pack", "fused-adamw")
    title = "From a name to the loss"
    require_in_order(title, calls)
    documented = {file for file, _ in path(title)}
    assert len(documented) <= 9
    begins = [index for index, (_, name) in enumerate(calls) if name == "read_corpus"]
    start, end = begins[0], next(i for i, (_, n) in enumerate(calls) if n == "Trainer.train_step")
    read = {file for file, _ in calls[start : calls.index(("training/resolve.py", "resolve_model"))]}
    stop = next(i for i in range(end, len(calls)) if calls[i][1] == "training_loss")
    step = {file for file, _ in calls[end:stop]}
    attention = {file for file, _ in path("From `--attention flash` to the kernel")} | {"backends/manual.py"}
    assert (read | step) - documented - attention <= BESIDE
    assert Run.open(tmp_path / "run").config["speedups"] == ["fused-adamw", "pack"]


def test_an_attention_backend_takes_the_path_that_is_documented_to_the_kernel(tmp_path: Path) -> None:
    calls = train(tmp_path, "--attention", "flash", "--speedups", "none")
    title = "From `--attention flash` to the kernel"
    assert len(path(title)) <= 7
    require_in_order(title, calls, constructed="TrainConfig")
