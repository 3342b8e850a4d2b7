"""benchmarks/regressions.py compares two versions that really ran, and judges only what is comparable."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import regressions
from flashmore.errors import UsageError
from forks import Forks

SCRIPT = Path(regressions.__file__)
HERE, THERE = regressions.HERE, regressions.THERE
Run = Callable[..., CompletedProcess[str]]
BLOCKS = [[float(10 + block % 2)] * 3 for block in range(8)]


@pytest.fixture
def run(forks: Forks) -> Run:
    return lambda *words: forks.run((SCRIPT, *words), os.environ)


def worktrees() -> str:
    return regressions.git("worktree", "list")


def record(blocks: list[list[float]], **changes: Any) -> dict[str, Any]:
    """A record of one figure, in which this tree has these blocks."""
    environment = dict.fromkeys((*regressions.KIND, "commit"), "one")
    samples = {"step": {THERE: BLOCKS, HERE: blocks}}
    return {
        "environment": environment | changes, "threads": 2, "smoke_test": False, "created": "2026-01-01",
        "samples_ms": samples, "what": "regressions",
    }  # fmt: skip


def slower(by: float) -> list[list[float]]:
    return [[by * ms for ms in block] for block in BLOCKS]


@pytest.fixture
def in_git() -> None:
    if not (regressions.ROOT / ".git").exists():
        pytest.skip("needs a git checkout")


@pytest.mark.usefixtures("in_git")
def test_the_default_reference_is_a_tag_or_a_commit_of_a_record() -> None:
    named = regressions.last_version()
    tags = regressions.git("tag").splitlines()
    assert named in tags if tags else regressions.git("cat-file", "-t", named) == "commit"


@pytest.mark.long
@pytest.mark.usefixtures("in_git")
def test_this_tree_against_its_own_commit(tmp_path: Path, run: Run) -> None:
    before, out = worktrees(), tmp_path / "record.json"
    done = run("--against", "HEAD", "--smoke-test", "--rounds", "1", "--threads", "1", "--out", out)
    assert done.returncode == 0, done.stderr  # a single round shows nothing
    found = json.loads(out.read_text())
    assert found["figures"].keys() == regressions.FIGURES.keys()
    for name, figure in found["figures"].items():
        assert figure["verdict"] == "inconclusive", name
        assert min(figure["median_ms"].values()) > 0
        assert f"{name} " in done.stdout
    # The same code computes the same: both sides trained, each with its own source.
    assert found["test_loss"][HERE] == found["test_loss"][THERE]
    assert "no committed record of this kind of machine" in done.stdout
    assert worktrees() == before


def test_the_same_times_are_no_difference_and_others_are_one() -> None:
    samples = {
        "same": {THERE: BLOCKS, HERE: BLOCKS},
        "slower": {THERE: BLOCKS, HERE: slower(1.2)},
        "faster": {THERE: BLOCKS, HERE: slower(0.8)},
        "few": {THERE: BLOCKS[:5], HERE: BLOCKS[:5]},
    }
    verdicts = {name: one["verdict"] for name, one in regressions.judged(samples, 3.0).items()}
    assert verdicts == {
        "same": "no difference", "slower": "slower", "faster": "faster", "few": "inconclusive",
    }  # fmt: skip


def test_a_record_counts_only_if_the_kind_of_machine_is_the_same() -> None:
    now = record(slower(1.2))
    others = [record(BLOCKS, **{name: "another"}) for name in regressions.KIND]
    assert regressions.since(now, [*others, record(BLOCKS) | {"threads": 1}], 3.0) is None
    found = regressions.since(now, [*others, record(BLOCKS[:7])], 3.0)
    assert found is not None
    assert (found["figures"]["step"]["verdict"], found["figures"]["step"]["pairs"]) == ("slower", 7)


def test_a_side_that_runs_other_code_has_no_figures(tmp_path: Path, run: Run) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("another_package/__init__.py", "")
    done = run("--against", wheel, "--smoke-test", "--rounds", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "wanted: flashmore from" in done.stderr


def test_what_one_side_cannot_measure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(side: regressions.Side) -> list[float]:
        if side.work == tmp_path:
            raise UsageError("the option --new", "this version has none", "a later one")
        return [1.0]

    monkeypatch.setattr(regressions, "FIGURES", {"new": fails, "step": lambda _: [2.0]})
    options = regressions.Options(rounds=6)
    sides = {THERE: regressions.Side(tmp_path, tmp_path, options)}
    sides[HERE] = regressions.Side(tmp_path, tmp_path / "here", options)
    samples, why_not = regressions.in_turn(sides, options, float("inf"))
    assert samples == {"step": {THERE: [[2.0]] * 6, HERE: [[2.0]] * 6}}
    assert "this version has none" in why_not["new"]
    assert regressions._line(("new", {"why_not": why_not["new"]})).endswith("found: this version has none")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--against", "no-such-commit"), "wanted: git rev-parse"),
        (("--against", "no-such.whl"), "wanted: the wheel no-such.whl"),
        (("--rounds", "0"), "wanted: a valid --rounds"),
        (("--equivalence", "0"), "wanted: a valid --equivalence"),
    ],
)
@pytest.mark.usefixtures("in_git")
def test_wrong_use_gives_a_message(words: tuple[str, ...], found: str, run: Run) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert found in done.stderr
    assert " valid: " in done.stderr
    assert "Traceback" not in done.stderr
