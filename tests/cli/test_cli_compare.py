"""`flashmore compare`: runs side by side, in a table, as JSON and as a picture."""

import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from matplotlib.image import imread

from flashmore.config import TrainConfig
from flashmore.runs import Run
from flashmore.training.loop import train

Call = Callable[..., CompletedProcess[str]]
Document = Callable[..., Any]
Make = Callable[..., Path]

OTHER_TEST = "these runs have different test items"
STILL_IMPROVING = "its lowest validation loss at its last step"


@pytest.fixture
def make(config: TrainConfig, tmp_path: Path) -> Make:
    """Train a small Bigram on other items or another split."""

    def run(name: str, items: list[str] | None = None, **changes: Any) -> Path:
        if items is not None:
            changes["file"] = tmp_path / f"{name}.txt"
            changes["file"].write_text("\n".join(items), encoding="utf-8")
        short: dict[str, Any] = {"model": "bigram", "max_steps": 4, "eval_interval": 4}
        train(replace(config, **short | changes), tmp_path / name)
        return tmp_path / name

    return run


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height by the PNG's own header, once all of it could be decoded."""
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    pixels = imread(picture)
    assert pixels.shape[:2] == (height, width)
    assert pixels.min() < pixels.max(), "nothing is drawn"
    return width, height


def test_models_are_trained_and_laid_side_by_side(
    process: Call, names_file: Path, plain: Callable[[str], bool], tmp_path: Path
) -> None:
    words = ("--models", "bigram", "mlp", "--file", names_file, "--max-steps", 20, "--out", tmp_path / "out")
    done = process("compare", *words, "--count", 3, "--picture", tmp_path / "new" / "names.png")
    assert done.returncode == 0, done.stderr
    assert min(size_of(tmp_path / "new" / "names.png")) > 300

    assert plain(done.stdout)
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line
    ]
    shown = {title: cells for title, *cells in rows if title}
    figures = [
        "attention",
        "parameters",
        "steps",
        "best step",
        "training time",
        "time per step",
        "validation loss",
        "test loss",
    ]
    assert list(shown) == ["run", *figures, "names"]
    assert shown["steps"] == ["20", "20"]
    for model, column in (("bigram", 0), ("mlp", 1)):
        result = Run.open(tmp_path / "out" / model).read_result()
        assert result
        assert shown["run"][column] == str(column + 1)
        assert f"run {column + 1}: {tmp_path / 'out' / model}\n" in done.stdout
        assert shown["parameters"][column] == f"{result['parameters']:,}"
        assert shown["test loss"][column] == f"{result['test_loss']:.4f} nats"
    assert all(cell for _, *cells in rows[-3:] for cell in cells), "three names from each"
    assert "step 20  loss" in done.stderr
    assert done.stderr.endswith(f"picture: {tmp_path / 'new' / 'names.png'}\n")


def test_json_holds_the_fields_of_train_and_of_generate(
    trained: Path, make: Make, document: Document, call: Call
) -> None:
    leaky = make("leaky", split="makemore")
    first, second = document("compare", trained, leaky, "--count", 4, "--seed", 7)
    for row, run in ((first, trained), (second, leaky)):
        result = Run.open(run).read_result()
        assert result is not None
        assert row.items() >= result.items()
        assert row.keys() - result.keys() == {"names", "best_step"}
        assert row["best_step"] == Run.open(run).load_state().best_step
        assert row["names"] == document("generate", run, "--count", 4, "--seed", 7)["names"]
    assert second.keys() - first.keys() == {"leak_share", "test_loss_unleaked"}


def test_a_run_that_was_moved_is_named_where_it_is(trained: Path, document: Document, tmp_path: Path) -> None:
    moved = shutil.copytree(trained, tmp_path / "moved")
    (row,) = document("compare", moved)
    assert row["run"] == str(moved)


def test_an_unfinished_run_is_refused_before_anything_is_trained(
    trained: Path, unfinished: Path, names_file: Path, call: Call, refusal: Callable[..., str], tmp_path: Path
) -> None:
    words = ("--models", "bigram", "--file", names_file, "--max-steps", 4, "--out", tmp_path / "out")
    message = refusal(call("compare", trained, unfinished, *words), 2)
    assert f"flashmore train --resume {unfinished}" in message
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_best_at_its_last_step_is_told(make: Make, call: Call) -> None:
    improving = make("improving")
    done = make("done", learning_rate=3.0, lr_schedule="constant", max_steps=30, eval_interval=1)
    best_step = Run.open(done).load_state().best_step
    assert best_step
    assert best_step < 30
    (told,) = (
        line for line in call("compare", improving, done).stderr.splitlines() if STILL_IMPROVING in line
    )
    assert told.startswith(f"{improving} has its lowest validation loss at its last step, 4: ")


def test_names_of_the_data_are_marked_without_colours_too(
    trained: Path, call: Call, document: Document
) -> None:
    given = ("compare", trained, "--count", 40, "--seed", 7)
    (row,) = document(*given)
    shown = call(*given).stdout
    assert {name["novelty"] for name in row["names"]} > {"new", "train"}
    for name in row["names"]:
        known = "" if name["novelty"] == "new" else f" ({name['novelty']})"
        assert f"│ {name['text']}{known} " in shown


def test_models_are_evaluated_at_the_same_steps(call: Call, names_file: Path, tmp_path: Path) -> None:
    words = ("--models", "bigram", "mlp", "--file", names_file, "--max-steps", 40, "--out", tmp_path)
    assert call("compare", *words, "--count", 2).returncode == 0
    for model in ("bigram", "mlp"):
        lines = Run.open(tmp_path / model).read_metrics()
        assert [line["step"] for line in lines if "val_loss" in line] == [*range(2, 41, 2)]


def test_different_test_names_are_told(trained: Path, make: Make, call: Call) -> None:
    alike = make("alike")
    other = make("other", split_seed=1)
    assert OTHER_TEST not in call("compare", trained, alike).stderr
    for command in (("compare", trained, other), ("compare", alike, trained, other, "--json")):
        done = call(*command)
        assert done.returncode == 0
        assert OTHER_TEST in done.stderr


@pytest.mark.parametrize(
    ("items", "boxes"),
    [
        pytest.param(["さくら", "はるか", "ゆい", "🦊🐈", "あおい"], True, id="no font"),
        pytest.param(["$a$", "$b_", "x^$", "\\frac", "a$$b"], False, id="formulas"),
        pytest.param(["ab" * 100, "ba" * 90, "a b " * 60 + "c", "abc" * 50], False, id="long names"),
        pytest.param(["José", "Zoë", "Ærø", "Łukasz", "Ἀθηνᾶ"], False, id="accents"),
    ],
)
def test_any_names_can_be_drawn_without_a_warning(
    items: list[str], boxes: bool, trained: Path, make: Make, call: Call, tmp_path: Path
) -> None:
    odd = make("odd", items, split="100/0/0", learning_rate=1.0, warmup_steps=0)
    picture = tmp_path / "names.png"
    plain_width, _ = size_of_comparison(call, trained, trained, picture=picture)
    done = call("compare", trained, odd, "--picture", picture, "--count", 6)
    assert done.returncode == 0
    remarks = (OTHER_TEST, STILL_IMPROVING)
    told = [line for line in done.stderr.splitlines() if not any(remark in line for remark in remarks)]
    assert told[0] == f"picture: {picture}"
    assert ["boxes in the picture" in line for line in told[1:]] == [True] * boxes
    assert size_of(picture)[0] == plain_width


def size_of_comparison(call: Call, *runs: Path, picture: Path) -> tuple[int, int]:
    assert call("compare", *runs, "--picture", picture, "--count", 6).returncode == 0
    return size_of(picture)


@pytest.mark.parametrize("split", ["100/0/0", "80/20/0", "80/0/20", "makemore"])
def test_parts_that_a_run_has_not_are_left_open(
    split: str, trained: Path, make: Make, call: Call, tmp_path: Path
) -> None:
    run = make("run", split=split)
    result = Run.open(run).read_result()
    assert result
    done = call("compare", run, "--picture", tmp_path / "names.png")
    assert done.returncode == 0
    for title in ("validation", "test"):
        (line,) = (line for line in done.stdout.splitlines() if f"{title} loss" in line)
        assert ("–" in line) == (result["val_loss" if title == "validation" else "test_loss"] is None)
    size_of(tmp_path / "names.png")


def test_more_runs_make_a_wider_picture_and_more_names_a_taller_one(
    trained: Path, call: Call, tmp_path: Path
) -> None:
    picture = tmp_path / "names.PNG"
    few = size_of_comparison(call, trained, picture=picture)
    wide = size_of_comparison(call, *[trained] * 5, picture=picture)
    assert call("compare", trained, "--picture", picture, "--count", 40).returncode == 0
    assert wide[0] > few[0]
    assert size_of(picture)[1] > few[1]


@pytest.mark.parametrize("as_json", [(), ("--json",)])
@pytest.mark.parametrize("place", ["a file/names.png", "a folder.png"])
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_done(
    place: str,
    as_json: tuple[str, ...],
    trained: Path,
    call: Call,
    refusal: Callable[..., str],
    tmp_path: Path,
) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "a folder.png").mkdir()
    done = call("compare", trained, *as_json, "--picture", tmp_path / place)
    assert str(tmp_path / place.split("/")[0]) in refusal(done, 1)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a file", "a folder.png"]


@pytest.mark.parametrize("picture", ["names.svg", "names", ".", "", "names.png.jpg"])
def test_another_kind_of_picture_is_refused_before_anything_is_done(
    picture: str, names_file: Path, call: Call, refusal: Callable[..., str], tmp_path: Path
) -> None:
    words = ("--models", "bigram", "--file", names_file, "--out", tmp_path / "out")
    assert ".png" in refusal(call("compare", *words, "--picture", picture), 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "runs to compare"),
        ("--count 3", "runs to compare"),
        ("nowhere", "no such folder"),
        ("{names}", "a file"),
        ("{run} --count 0", "--count"),
        ("{run} --seed -1", "--seed"),
        ("--models bigram --max-steps 0 --file {names}", "--max-steps"),
        ("--models bigram --file nowhere.txt", "nowhere.txt"),
        ("--models bigram --file {names} --column nmae", "'nmae'"),
        ("--models bigram --column name", "--file with --column"),
        ("--models bigram --count 0 --file {names}", "--count"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    words: str,
    told: str,
    trained: Path,
    names_file: Path,
    call: Call,
    refusal: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = words.format(run=trained, names=names_file)
    assert told in refusal(call("compare", *given.split()), 2)
    assert not list(tmp_path.iterdir())
