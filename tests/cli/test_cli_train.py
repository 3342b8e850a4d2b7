"""`flashmore train`: what it prints and leaves, what decides a run, and what it learns from."""

import json
import re
import shlex
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest

from flashmore.config import TrainConfig
from flashmore.runs import Run
from flashmore.training.corpus import read_corpus
from flashmore.training.fit import fit
from flashmore.training.folders import config_of

Call = Callable[..., CompletedProcess[str]]
Document = Callable[..., Any]

ABOUT_THE_MACHINE = ("this machine is busy", "on battery power", "steps now take")
RESULT = {
    "run": str,
    "model": str,
    "attention": str,
    "parameters": int,
    "steps": int,
    "train_seconds": float,
    "step_ms": float,
    "val_loss": float,
    "test_loss": float,
    "ngram": dict,
}
TRANSFORMER = ("--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--attention", "manual", "--device", "cpu")


def types_of(document: dict[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in document.items()}


class Trained(NamedTuple):
    done: CompletedProcess[str]
    run: Path

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.done.stdout)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def by_process(process: Call, names_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A Transformer, trained by a process of its own with --json."""
    run = tmp_path_factory.mktemp("train") / "run"
    words = ("train", names_file, *TRANSFORMER, "--max-steps", 25, "--log-interval", 5, "--eval-interval", 10)
    return Trained(process(*words, "--out", run, "--json"), run)


def test_json_is_one_document_with_the_documented_fields(by_process: Trained) -> None:
    assert by_process.done.returncode == 0, by_process.done.stderr
    result = by_process.result
    assert types_of(result) == RESULT
    assert (result["run"], result["model"], result["attention"]) == (
        str(by_process.run),
        "transformer",
        "manual",
    )
    assert result["steps"] == 25


def test_progress_goes_to_stderr_as_plain_lines(by_process: Trained, plain: Callable[[str], bool]) -> None:
    told = by_process.done.stderr.splitlines()
    told = [line for line in told if not line.startswith(ABOUT_THE_MACHINE)]
    first, attention, fitted, speedups, compiling, *lines = told
    assert "112 train, 14 validation, 14 test" in first
    assert attention == "attention: manual (as requested)"
    assert fitted.startswith("for 112 items: dropout ")
    assert speedups.startswith("speed-ups: fused-adamw")
    assert compiling.startswith("compile skipped: ")
    assert [line.split("  ")[0] for line in lines] == ["step 10", "step 20", "step 25"]
    for word in ("loss", "ms a step", "characters/s", "validation"):
        assert all(word in line for line in lines)
    assert plain(by_process.done.stderr)


def test_metrics_hold_the_loss_and_where_evaluated_the_validation_loss(by_process: Trained) -> None:
    lines = [json.loads(line) for line in (by_process.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25]
    assert [line["step"] for line in lines if "val_loss" in line] == [10, 20, 25]
    for line in lines:
        assert {"step", "loss"} <= line.keys() <= {"step", "loss", "step_ms", "val_loss"}


def test_a_run_is_the_documented_folder(
    by_process: Trained, contents: Callable[..., dict[str, bytes]]
) -> None:
    files = {name for name in contents(by_process.run) if not name.startswith("events.")}
    records = {"config.json", "vocabulary.json", "split.json", "metrics.jsonl", "result.json"}
    assert files == records | {"step-000000020.safetensors", "step-000000025.safetensors"}


def test_makemores_split_adds_its_two_fields_and_has_no_validation_loss(
    quick: tuple[object, ...], document: Document, tmp_path: Path
) -> None:
    result = document(*quick, "--split", "makemore", "--out", tmp_path / "run")
    added = {"leak_share": float, "test_loss_unleaked": float}
    expected = RESULT | {"attention": type(None), "val_loss": type(None)} | added
    del expected["ngram"]
    assert types_of(result) == expected


def test_the_table_holds_the_figures_and_says_how_to_go_on(
    quick: tuple[object, ...], call: Call, plain: Callable[[str], bool], tmp_path: Path
) -> None:
    run = tmp_path / "an [odd] [/name] :cat:"
    done = call(*quick, "--out", run)
    assert done.returncode == 0
    assert f"run {run}\n" in done.stdout
    for figure in ("bigram", "169", "training", " ms ", "validation loss", " nats "):
        assert figure in done.stdout
    assert f"; run {run}\n" in done.stderr
    assert plain(done.stdout)
    assert re.fullmatch(r"\d+ drawn: \d+ new, \d+ copies.*", done.stdout.splitlines()[-2])
    examples = re.findall(r"^│ (\w+) +│ (train|validation|test|new) +│$", done.stdout, re.MULTILINE)
    assert len(dict(examples)) == len(examples) == 10
    assert all(Run.open(run).split.novelty(name) == novelty for name, novelty in examples)
    advice = done.stdout.splitlines()[-1].removeprefix("to generate more names: flashmore ")
    assert call(*shlex.split(advice)).returncode == 0


def test_no_names_are_drawn_at_the_end_where_that_would_take_long(
    quick: tuple[object, ...], call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("flashmore.cli.train.MOST_PRODUCTS", 1000)
    done = call(*quick, "--out", tmp_path / "run")
    assert done.returncode == 0
    assert " drawn: " not in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model bigram", TrainConfig(model="bigram")),
        ("--model mlp", TrainConfig(model="mlp")),
        ("--model=gru", TrainConfig(model="gru")),
        ("--model gru --model bigram", TrainConfig(model="bigram")),
        ("--preset makemore --model mlp", TrainConfig(model="mlp", preset="makemore")),
        ("--preset=makemore --model bigram", TrainConfig(model="bigram", preset="makemore")),
        (
            "--preset makemore --learning-rate 0.1 --model mlp",
            replace(TrainConfig(model="mlp", preset="makemore"), learning_rate=0.1),
        ),
        (
            "--batch-size 8 --model mlp --preset makemore",
            replace(TrainConfig(model="mlp", preset="makemore"), batch_size=8),
        ),
        ("--weight-decay 0.5 --model bigram", replace(TrainConfig(model="bigram"), weight_decay=0.5)),
        (
            "--model bow --log-interval 1 --split 90/5/5",
            replace(TrainConfig(model="bow"), log_interval=1, split="90/5/5"),
        ),
    ],
)
def test_defaults_come_from_preset_and_model_and_options_win(
    words: str, expected: TrainConfig, names_file: Path, call: Call, tmp_path: Path
) -> None:
    given = ("--max-steps", 2, "--device", "cpu", "--out", tmp_path / "run")
    assert call("train", names_file, *words.split(), *given).returncode == 0
    kept = config_of(Run.open(tmp_path / "run"))
    expected = replace(expected, file=names_file, max_steps=2)
    expected = fit(expected, read_corpus(expected))[0]
    # What `auto` came to is kept with the run.
    settled = {name: getattr(kept, name) for name in ("speedups", "dtype")}
    for name in ("optimizer", "lr_schedule"):
        if getattr(expected, name) == "auto":
            settled[name] = getattr(kept, name)
    assert "auto" not in settled.values()
    assert kept == replace(expected, file=names_file, max_steps=2, device="cpu", **settled)


def test_runs_are_numbered_where_none_is_named(
    quick: tuple[object, ...], document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = [document(*quick)["run"] for _ in range(3)]
    assert made == [str(Path("runs") / name) for name in ("bigram", "bigram-2", "bigram-3")]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["bigram", "bigram-2", "bigram-3"]


def test_a_second_run_in_the_same_folder_is_refused_and_nothing_is_lost(
    quick: tuple[object, ...],
    trained: Path,
    call: Call,
    refusal: Callable[..., str],
    contents: Callable[..., dict[str, bytes]],
) -> None:
    before = contents(trained)
    assert f"--resume {trained}" in refusal(call(*quick, "--out", trained), 2)
    assert contents(trained) == before


@pytest.mark.parametrize(
    "words",
    [
        "--learning-rate 1",
        "--learning-rate=1",
        "--model mlp",
        "--preset makemore",
        "--out x",
        "names.txt",
        "--max-steps 70 --seed 1",
    ],
)
def test_resume_takes_no_option_that_changes_the_run(
    words: str,
    trained: Path,
    call: Call,
    refusal: Callable[..., str],
    contents: Callable[..., dict[str, bytes]],
) -> None:
    before = contents(trained)
    message = refusal(call("train", "--resume", trained, *words.split()), 2)
    assert words.removeprefix("--max-steps 70 ") in message
    assert "[OPTIONS listed by --help]" in message
    assert contents(trained) == before


def test_resume_goes_on_to_more_steps_and_never_to_fewer(
    trained: Path, call: Call, document: Document, refusal: Callable[..., str], tmp_path: Path
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    assert "60 or more" in refusal(call("train", "--resume", run, "--max-steps", 59), 2)
    result = document("train", f"--resume={run}", "--max-steps", 80)
    assert result["steps"] == 80
    assert types_of(result) == RESULT | {"attention": type(None)}
    again = document("train", "--resume", run)
    assert again["test_loss"] == result["test_loss"]


NFD = unicodedata.normalize("NFD", "José\nZoë\nRenée\nChloé\nAndré\nNoël\nIñaki\n")


@pytest.mark.parametrize(
    ("data", "options", "item"),
    [
        pytest.param("\ufeffanna\r\nbob\r\n\r\ncarl\r\ndora\r\n".encode(), "", "anna", id="BOM and CRLF"),
        pytest.param(b"anna\rbob\rcarl\rdora", "", "dora", id="CR alone, no last line end"),
        pytest.param(NFD.encode(), "", "José", id="accents in NFD"),
        pytest.param("🦊🐈\n🐈🦊\n🦊\n👩‍👩‍👧\n".encode(), "", "👩‍👩‍👧", id="emoji"),
        pytest.param("さくら\nはるか\nゆい\nあおい\nひな\n".encode(), "", "さくら", id="Japanese"),
        pytest.param(b"anna\nbob\ncarl\n", "", "bob", id="three lines"),
        pytest.param(b"anna\n", "--split 100/0/0", "anna", id="one line, all of it to learn from"),
        pytest.param(b" Mary Ann \nJean Luc\nJo\nAnna Lena\n", "", "Mary Ann", id="names with spaces"),
        pytest.param(b"Jos\xe9\nZo\xeb\nAnna\n", "--encoding latin-1", "José", id="latin-1, by name"),
        pytest.param("anna\nbob\ncarl\n".encode("utf-16"), "--encoding utf-16", "carl", id="UTF-16, by name"),
        pytest.param(b"anna\nanna\nbob\nanna\ncarl\n", "", "anna", id="duplicates"),
        pytest.param(b"a\tb\n[/b]\n$x$\n:cat:\n<b>\n%s\n{}\n\\n\n", "", "[/b]", id="what looks like markup"),
    ],
)
def test_any_text_trains_and_gives_names_of_its_own_characters(
    data: bytes, options: str, item: str, call: Call, document: Document, tmp_path: Path
) -> None:
    (tmp_path / "items.txt").write_bytes(data)
    run = tmp_path / "run"
    words = ("--model", "bigram", "--max-steps", 4, "--device", "cpu", "--out", run)
    assert call("train", tmp_path / "items.txt", *options.split(), *words).returncode == 0

    split = Run.open(run).split
    items = (*split.train, *split.validation, *split.test)
    assert item in items
    assert len(items) == len(set(items))
    assert all(kept == kept.strip() == unicodedata.normalize("NFC", kept) != "" for kept in items)

    names = document("generate", run, "--count", 3, "--seed", 1, "--repeats")["names"]
    assert {character for name in names for character in name["text"]} <= set("".join(items))
    (scored,) = document("score", run, unicodedata.normalize("NFD", item))
    assert scored["text"] == item
    assert scored["novelty"] != "new"
    assert item in call("score", run, item).stdout
