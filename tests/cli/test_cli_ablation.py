"""`flashmore bench ablation` and `flashmore speedups` as a user gives them."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from flashmore.measuring.result import read_record
from flashmore.speedups import CATALOGUE

Call = Callable[..., CompletedProcess[str]]
Document = Callable[..., Any]


@pytest.fixture
def small(names_file: Path) -> tuple[object, ...]:
    sizes = ("--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--batch-size", 8, "--device", "cpu")
    return ("bench", "ablation", names_file, *sizes, "--blocks", 2, "--speedups", "resident", "pack")


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmore.benchmark.ablation.bench.BLOCK_SECONDS", 1e-3)
    monkeypatch.setattr("flashmore.benchmark.ablation.bench.TRIAL_BLOCKS", 2)  # too few to drop a speed-up


def test_the_ablation_is_a_table_a_record_and_a_picture(
    call: Call,
    small: tuple[object, ...],
    tmp_path: Path,
    plain: Callable[[str], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    record, picture = tmp_path / "ablation.json", tmp_path / "ablation.png"
    done = call(*small, "--leave-one-out", "--out", record, "--picture", picture)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in ("none", "resident", "pack", "without resident", "without pack"):
        assert any(line.strip().startswith(name) for line in lines), done.stdout
    assert "of the error budget" in done.stdout
    assert "warning: too few samples: 2 blocks" in done.stdout
    assert plain(done.stdout)
    assert read_record(record)["kind"] == "ablation"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_json_is_the_record_and_nothing_else(document: Document, small: tuple[object, ...]) -> None:
    record = document(*small)
    assert [variant["name"] for variant in record["variants"]] == ["none", "resident", "pack"]
    wanted = {"name", "step_ms", "ratio", "first_step_seconds", "break_even_steps", "exactness"}
    assert all(wanted <= variant.keys() for variant in record["variants"])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--attention", "flash"), "--attention"),
        (("--dtype", "bfloat16"), "--dtype"),
        (("--optimizer", "muon"), "--optimizer"),
        (("--lr-schedule", "cosine"), "--lr-schedule"),
        (("--blocks", "0"), "0"),
        (("--seconds", "0"), "0.0"),
        (("--speedups", "none"), "none"),
        (("--column", "a", "--weight", "n"), "--weight"),
        (("--speedups", "turbo"), "turbo"),
        (("--speedups", "tf32"), "uses cpu"),
        (("--mode", "text"), "--mode text"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused(
    words: tuple[str, ...], found: str, call: Call, small: tuple[object, ...], refusal: Callable[..., str]
) -> None:
    assert found in refusal(call(*small, *words), 2)


def test_the_catalogue_shows_every_entry(call: Call, plain: Callable[[str], bool]) -> None:
    done = call("speedups", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    joined = " ".join(done.stdout.split())
    for name, entry in CATALOGUE.items():
        assert f"{name}: {entry.title}\n" in done.stdout
        assert f"; {entry.exactness}; costs {entry.costs} " in joined
        assert f"  {entry.page}\n" in done.stdout
    assert "not usable here: it works on cuda, but this run uses cpu" in done.stdout
    assert plain(done.stdout)


def test_the_catalogue_as_json_is_a_list_of_objects_named_first(document: Document) -> None:
    entries = document("speedups", "--device", "cpu")
    assert [entry["name"] for entry in entries] == list(CATALOGUE)
    for entry in entries:
        assert next(iter(entry)) == "name"
        assert entry["works_here"] is (entry["why_not"] is None)
    works = {entry["name"]: entry["works_here"] for entry in entries}
    assert works["pack"]
    assert not works["tf32"]
