import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flashmore.errors import FlashmoreError, RunError, StorageError
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.runs import Checkpoint, Run, records

MakeRun = Callable[[Path], Run]

SETTINGS = ("config.json", "vocabulary.json", "split.json")


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path) -> Run:
    return make_run(tmp_path / "runs" / "first")


@pytest.fixture(scope="module")
def module_run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("module") / "run")


def rewrite_config(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alter config.json and give it the right checksum again, as somebody who means it would."""
    config = json.loads((path / "config.json").read_bytes())
    del config["sha256"]
    change(config)
    (path / "config.json").write_bytes(records.encode(records.seal(config)))


def test_open_gives_what_create_wrote(run: Run) -> None:
    opened = Run.open(str(run.path))
    assert opened == run
    assert opened.recipe == {"steps": 10, "lr": 5e-4, "file": None, "betas": [0.9, 0.99]}
    assert opened.split.novelty("zoë") == "train"
    assert opened.split.leak_share == 1.0
    assert opened.vocabulary.encode("zoë") == run.vocabulary.encode("zoë")
    assert opened.model == ModelConfig(
        model="bigram", vocabulary_size=run.vocabulary.size, context=8, dropout=0.5
    )
    assert opened.versions["torch"] == torch.__version__
    assert sorted(entry.name for entry in run.path.iterdir()) == sorted(SETTINGS)


def test_create_takes_an_empty_folder(make_run: MakeRun, tmp_path: Path) -> None:
    assert Run.open(make_run(tmp_path).path).path == tmp_path


def test_create_refuses_a_run_and_names_resume(make_run: MakeRun, run: Run) -> None:
    before = {entry: entry.read_bytes() for entry in run.path.iterdir()}
    with pytest.raises(RunError, match="--resume") as caught:
        make_run(run.path)
    assert str(run.path) in caught.value.valid
    assert {entry: entry.read_bytes() for entry in run.path.iterdir()} == before


def test_create_refuses_a_folder_that_holds_something(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("four years")
    with pytest.raises(RunError, match=r"holds thesis\.txt"):
        make_run(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_create_refuses_a_file(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="a file"):
        make_run(tmp_path / "file")
    with pytest.raises(StorageError, match="Not a directory"):
        make_run(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_create_that_fails_leaves_no_folder(make_run: MakeRun, tmp_path: Path) -> None:
    # The system's limit on names is met below two folders that have to be made first.
    with pytest.raises(StorageError):
        make_run(tmp_path / "new" / "er" / ("n" * 300))
    assert list(tmp_path.iterdir()) == []


def test_open_names_what_is_there_instead_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    (tmp_path / "folder").mkdir()
    for name, found in {"none": "no such folder", "file": "a file", "folder": "a folder without"}.items():
        with pytest.raises(RunError) as caught:
            Run.open(tmp_path / name)
        assert found in caught.value.found
        assert str(tmp_path / name) in caught.value.wanted
        assert "flashmore train" in caught.value.valid


@pytest.mark.parametrize("name", SETTINGS[1:])
def test_open_names_a_missing_file(run: Run, name: str) -> None:
    (run.path / name).unlink()
    with pytest.raises(RunError, match="it is missing") as caught:
        Run.open(run.path)
    assert str(run.path / name) in caught.value.wanted


@pytest.mark.parametrize("name", SETTINGS)
def test_open_finds_every_cut(run: Run, name: str) -> None:
    data = (run.path / name).read_bytes()
    for length in range(len(data) - 1):
        (run.path / name).write_bytes(data[:length])
        with pytest.raises(RunError, match=name):
            Run.open(run.path)


@pytest.mark.parametrize("name", SETTINGS)
@settings(deadline=None)
@given(data=st.data())
def test_open_finds_every_altered_bit(module_run: Run, name: str, data: st.DataObject) -> None:
    path = module_run.path / name
    intact = path.read_bytes()
    altered = bytearray(intact)
    altered[data.draw(st.integers(0, len(intact) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(altered)
    try:
        with pytest.raises(RunError):
            Run.open(module_run.path)
    finally:
        path.write_bytes(intact)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("junk", [b"", b"\xff\xfe", b"[]", b"3", b"[" * 100_000, b'{"format": NaN}'])
def test_open_refuses_junk(run: Run, name: str, junk: bytes) -> None:
    (run.path / name).write_bytes(junk)
    with pytest.raises(RunError):
        Run.open(run.path)


def test_open_refuses_a_folder_for_a_file(run: Run) -> None:
    (run.path / "split.json").unlink()
    (run.path / "split.json").mkdir()
    with pytest.raises(RunError, match="a folder"):
        Run.open(run.path)


def test_open_refuses_the_vocabulary_of_another_run(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "other")
    (tmp_path / "other" / "vocabulary.json").write_text('{"characters": ["a", "b"]}\n')
    with pytest.raises(RunError, match="SHA-256"):
        Run.open(tmp_path / "other")


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_open_refuses_an_unknown_format(run: Run, version: object) -> None:
    rewrite_config(run.path, lambda config: config.update(format=version))
    with pytest.raises(RunError, match="does not know") as caught:
        Run.open(run.path)
    assert repr(version) in caught.value.found


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("model"),
        lambda config: config.pop("files"),
        lambda config: config.pop("recipe"),
        lambda config: config.update(recipe=3),
        lambda config: config.update(files=[]),
        lambda config: config["model"].pop("heads"),
        lambda config: config["model"].update(surprise=1),
        lambda config: config["model"].update(heads="four"),
        lambda config: config["model"].update(layers=2.5),
        lambda config: config["model"].update(model="oracle"),
        lambda config: config["model"].update(vocabulary_size=3),
    ],
)
def test_open_refuses_settings_that_make_no_model(
    run: Run, change: Callable[[dict[str, Any]], object]
) -> None:
    rewrite_config(run.path, change)
    with pytest.raises(RunError):
        Run.open(run.path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocabulary.json", {"characters": ["b", "a"]}),
        ("vocabulary.json", {}),
        ("split.json", {"train": [1], "validation": [], "test": [], "leak_share": None}),
        ("split.json", {"train": [], "validation": [], "test": [], "leak_share": "none"}),
        ("split.json", {"train": []}),
    ],
)
def test_open_refuses_parts_that_make_no_sense(run: Run, name: str, content: dict[str, Any]) -> None:
    data = records.encode(content)
    (run.path / name).write_bytes(data)
    rewrite_config(run.path, lambda config: config["files"].update({name: records.digest(data)}))
    with pytest.raises(RunError):
        Run.open(run.path)


def test_restore_gives_the_model_the_saved_weights(run: Run) -> None:
    model = build(run.model, seed=1)
    weights = {name: torch.rand_like(value) for name, value in model.state_dict().items()}
    run.restore(model, Checkpoint(weights, {}, {}))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_restore_names_every_difference_and_changes_nothing(run: Run) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {**before, "0.weight": torch.zeros(4, 4), "2.gain": torch.zeros(1)}
    del weights["1.bias"]
    with pytest.raises(RunError) as caught:
        run.restore(model, Checkpoint(weights, {}, {}))
    assert (
        caught.value.found == "missing: 1.bias; unknown: 2.gain; 0.weight of shape (4, 4) instead of (3, 2)"
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_result_is_none_until_it_is_written(run: Run) -> None:
    assert run.read_result() is None
    run.write_result({"test_loss": 2.0})
    run.write_result({"test_loss": 1.5, "name": "zoë"})
    assert Run.open(run.path).read_result() == {"test_loss": 1.5, "name": "zoë"}


def test_a_cut_result_is_named(run: Run) -> None:
    run.write_result({"test_loss": 2.0})
    result = run.path / "result.json"
    result.write_bytes(result.read_bytes()[:-4])
    with pytest.raises(RunError, match=r"result\.json"):
        run.read_result()


def test_numbers_that_json_does_not_know_are_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="JSON"):
        run.write_result({"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        run.append_metrics({"step": 1, "loss": float("inf")})
    assert run.read_result() is None
    assert run.read_metrics() == []


def test_every_message_has_three_parts(tmp_path: Path) -> None:
    with pytest.raises(FlashmoreError) as caught:
        Run.open(tmp_path)
    assert all((caught.value.wanted, caught.value.found, caught.value.valid))
