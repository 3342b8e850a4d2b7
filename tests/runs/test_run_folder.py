import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flashmore.data.items import Split
from flashmore.data.long_text import random_facts
from flashmore.data.stored_items import StoredItems
from flashmore.errors import FlashmoreError, RunError, StorageError
from flashmore.files import open_regular
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.runs import Checkpoint, Run, locked, records

MakeRun = Callable[..., Run]
MakeCheckpoint = Callable[..., Checkpoint]
Contents = Callable[[Path], dict[str, bytes]]

SETTINGS = ("config.json", "vocabulary.json", "split.json")
NESTED: list[Any] = []
for _ in range(900):  # deep enough for functions that call themselves, and json.dumps still takes it
    NESTED = [NESTED]


@pytest.fixture(scope="module")
def module_run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("module") / "run")


def rewrite_config(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Alter config.json and give it the right checksum again, as somebody who means harm would."""
    config = json.loads((path / "config.json").read_bytes())
    del config["sha256"]
    change(config)
    (path / "config.json").write_bytes(records.encode(records.seal(config)))


def test_open_gives_what_create_wrote(run: Run) -> None:
    opened = Run.open(str(run.path))
    assert opened == run
    assert opened.config == {"max_steps": 10, "learning_rate": 5e-4, "file": None, "speedups": ["none"]}
    assert opened.split.novelty("zoë") == "train"
    assert opened.split.leak_share == 1.0
    assert opened.model == ModelConfig(
        model="bow", vocab_size=run.vocabulary.size, block_size=6, n_embd=4, dropout=0.5
    )
    assert opened.settings.versions["torch"] == torch.__version__
    names = (*SETTINGS, "step-000000000.safetensors", "run.lock")
    assert sorted(entry.name for entry in run.path.iterdir()) == sorted(names)


def test_create_takes_an_empty_folder(make_run: MakeRun, tmp_path: Path) -> None:
    assert Run.open(make_run(tmp_path).path).path == tmp_path


def test_create_refuses_a_run(make_run: MakeRun, run: Run, contents: Contents) -> None:
    before = contents(run.path)
    with pytest.raises(RunError, match="a run"):
        make_run(run.path)
    assert contents(run.path) == before


def test_create_refuses_a_folder_that_holds_something(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("four years")
    with pytest.raises(RunError, match=r"contains thesis\.txt"):
        make_run(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "four years"


def test_a_create_that_fails_leaves_no_folder(make_run: MakeRun, tmp_path: Path) -> None:
    # The system's limit on names is met below two folders that have to be made first.
    with pytest.raises(StorageError):
        make_run(tmp_path / "new" / "er" / ("n" * 300))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="Not a directory"):
        make_run(tmp_path / "file" / "below")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_create_without_a_checkpoint_leaves_nothing(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "new" / "run"
    with locked(path), Run.create(path, run.settings):
        assert (path / "split.json").exists()
    assert not (tmp_path / "new").exists()


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


def make_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def make_hard_link(path: Path, outside: Path) -> None:
    path.hardlink_to(outside)


def make_pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path, outside: Path) -> None:
    os.chdir(path.parent)  # the name of a socket may not be long
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)


@pytest.mark.skipif(os.name != "posix", reason="needs the kinds of files that Unix has")
@pytest.mark.parametrize("make", [make_link, make_hard_link, make_pipe, make_socket])
@pytest.mark.parametrize(
    "name",
    [*SETTINGS, "step-000000000.safetensors", "metrics.jsonl", "result.json", "run.lock", "notes"],
)
def test_nothing_but_regular_files_with_one_name_may_lie_in_a_run(
    run: Run,
    make: Callable[[Path, Path], None],
    name: str,
    tmp_path: Path,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path, outside = run.path / name, tmp_path / "outside"
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("mine")
    before = outside.read_bytes()
    make(path, outside)
    with pytest.raises(RunError) as caught:
        Run.open(run.path)
    assert name in caught.value.wanted + caught.value.found
    assert outside.read_bytes() == before


def test_a_link_made_after_opening_is_not_followed(
    run: Run, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for name in ("metrics.jsonl", "result.json", "run.lock"):
        (run.path / name).unlink(missing_ok=True)
        (run.path / name).symlink_to(outside)
    with pytest.raises(RunError, match="a symbolic link"):
        run.log_metrics(run.load_state())
    with pytest.raises(RunError, match="a symbolic link"):
        run.read_result()
    with pytest.raises(RunError, match="a symbolic link"), locked(run.path):
        pass
    run.write_result({"test_loss": 1.0})
    assert outside.read_text() == "mine"
    assert not (run.path / "result.json").is_symlink()


def test_a_huge_file_is_refused_by_its_size(run: Run) -> None:
    for name in SETTINGS:
        kept = (run.path / name).read_bytes()
        os.truncate(run.path / name, 2**40)  # a file with a hole, which takes no room on the disk
        with pytest.raises(RunError, match=r"1,099,511,627,776 bytes"):
            Run.open(run.path)
        (run.path / name).write_bytes(kept)


@pytest.mark.skipif(not hasattr(os, "SEEK_HOLE"), reason="needs files with holes")
def test_a_large_file_that_is_nearly_all_holes_is_not_read(run: Run) -> None:
    path = run.path / "step-000000000.safetensors"
    os.truncate(path, 2**40)
    with pytest.raises(RunError, match="sparse") as caught:
        run.load_weights()
    assert path.name in caught.value.found


def test_a_file_that_the_disk_holds_is_read_whatever_its_size(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        for _ in range(17):
            file.write(bytes(2**24))
    with open_regular(path) as opened:
        assert opened.read(4) == bytes(4)


def test_open_refuses_a_folder_for_a_file(run: Run) -> None:
    (run.path / "split.json").unlink()
    (run.path / "split.json").mkdir()
    with pytest.raises(RunError, match="a folder"):
        Run.open(run.path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "run.lock", "step-000000007.safetensors"])
def test_open_refuses_a_folder_where_a_file_will_be_written(run: Run, name: str) -> None:
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).mkdir()
    with pytest.raises(RunError, match="a folder") as caught:
        Run.open(run.path)
    assert name in caught.value.found


def test_open_refuses_a_folder_of_endless_files(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.path / "mine").mkdir()
    Run.open(run.path)
    monkeypatch.setattr("flashmore.runs.settings.MOST_FILES", 5)
    with pytest.raises(RunError, match="more than 5 files"):
        Run.open(run.path)


def test_open_refuses_the_vocabulary_of_another_run(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "other")
    (tmp_path / "other" / "vocabulary.json").write_text('{"characters": ["a", "b"]}\n')
    with pytest.raises(RunError, match="SHA-256"):
        Run.open(tmp_path / "other")


@pytest.mark.parametrize("version", [1, 6, 8, "7", None, 10**15])
def test_open_refuses_an_unknown_format(run: Run, version: object) -> None:
    rewrite_config(run.path, lambda config: config.update(format=version))
    with pytest.raises(RunError, match="which this version of flashmore does not") as caught:
        Run.open(run.path)
    assert str(version)[:20] in caught.value.found


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("model"),
        lambda config: config.pop("files"),
        lambda config: config.pop("config"),
        lambda config: config.update(config=3),
        lambda config: config.update(requested=[]),
        lambda config: config["requested"].update(speedups=[["none"]]),
        lambda config: config["requested"].update(max_steps=NESTED),
        lambda config: config["config"].update(max_steps=10**30),
        lambda config: config.update(files=[]),
        lambda config: config.update(versions={"torch": 2}),
        lambda config: config.update(surprise=1),
        lambda config: config["model"].pop("n_head"),
        lambda config: config["model"].update(surprise=1),
        lambda config: config["model"].update(n_head="four"),
        lambda config: config["model"].update(n_layer=2.5),
        lambda config: config["model"].update(n_layer=10**6),
        lambda config: config["model"].update(bias=1),
        lambda config: config["model"].update(dropout=10**400),
        lambda config: config["model"].update(model="reference"),
        lambda config: config["model"].update(attention="auto"),
        lambda config: config["model"].update(vocab_size=3),
        lambda config: config["model"].update(block_size=3),
        lambda config: config["model"].update(block_size=7),
        lambda config: config["model"].update(block_size=10**6),
    ],
)
def test_open_refuses_settings_that_make_no_model(
    run: Run, change: Callable[[dict[str, Any]], object]
) -> None:
    rewrite_config(run.path, change)
    with pytest.raises(RunError):
        Run.open(run.path)


TEXT = {
    "kind": "characters", "path": "text.txt", "encoding": "utf-8", "count": 100, "largest": 4, "origin": "",
    "store_sha256": "", "parts": {"train": [0, 80], "validation": [80, 90], "test": [90, 100]}, "order": None,
}  # fmt: skip
WEIGHTS: dict[str, Any] = {"train": [], "validation": [], "test": []}
STORED: dict[str, Any] = {
    "path": "/names.bin", "count": 9, "order": "\n abcdenozë", "ids_sha256": "", "shares": "80/10/10",
    "seed": 1,
}  # fmt: skip
NONE: dict[str, Any] = {
    "train": [],
    "validation": [],
    "test": [],
    "leak_share": None,
    "weights": None,
    "text": None,
}
ITEMS = NONE | {"train": ["anna"], "stored": None}


def test_a_run_on_a_prepared_list_has_no_items_in_its_folder(run: Run) -> None:
    rewrite(run, "split.json", NONE | {"stored": STORED})
    opened = Run.open(run.path)
    assert opened.settings.stored == StoredItems(**STORED)
    assert opened.split == Split((), (), (), None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocabulary.json", {"characters": ["b", "a"]}),
        ("vocabulary.json", {"characters": "ab"}),
        ("vocabulary.json", {"characters": ["a", "b"]}),
        ("vocabulary.json", {}),
        ("split.json", {"train": []}),
        ("split.json", ITEMS | {"train": [1]}),
        ("split.json", ITEMS | {"train": "anna"}),
        ("split.json", ITEMS | {"train": [""]}),
        ("split.json", ITEMS | {"train": ["x"]}),
        ("split.json", ITEMS | {"train": ["a" * 8]}),
        ("split.json", ITEMS | {"leak_share": "none"}),
        ("split.json", ITEMS | {"surprise": 1}),
        ("split.json", ITEMS | {"weights": {"train": [1.0]}}),
        ("split.json", ITEMS | {"weights": {"train": [1.0, 1.0], "validation": [], "test": []}}),
        ("split.json", ITEMS | {"weights": {"train": [0.0], "validation": [], "test": []}}),
        ("split.json", ITEMS | {"weights": {"train": [-1.0], "validation": [], "test": []}}),
        ("split.json", ITEMS | {"weights": {"train": ["1"], "validation": [], "test": []}}),
        ("split.json", ITEMS | {"train": [], "text": TEXT, "weights": WEIGHTS}),
        ("split.json", ITEMS | {"text": TEXT}),
        ("split.json", ITEMS | {"train": [], "text": TEXT | {"kind": "scroll"}}),
        ("split.json", ITEMS | {"train": [], "text": TEXT | {"path": None}}),
        ("split.json", ITEMS | {"train": [], "text": TEXT | {"largest": 99}}),
        ("split.json", ITEMS | {"train": [], "text": TEXT | {"count": 50}}),
        ("split.json", ITEMS | {"train": [], "text": TEXT | {"parts": {}}}),
        ("split.json", ITEMS | {"train": [], "text": TEXT | {"path": "/text.bin", "order": " abdeë"}}),
        ("split.json", ITEMS | {"stored": STORED}),
        ("split.json", NONE | {"stored": STORED, "leak_share": 0.5}),
        ("split.json", NONE | {"stored": STORED, "text": TEXT | {"path": "/text.txt"}}),
        ("split.json", NONE | {"stored": STORED | {"order": "\n abcdenoz"}}),
        ("split.json", NONE | {"stored": STORED | {"order": " abcdenozë\n"}}),
        ("split.json", NONE | {"stored": STORED | {"path": "names.bin"}}),
        ("split.json", NONE | {"stored": STORED | {"shares": "makemore"}}),
        ("split.json", NONE | {"stored": STORED | {"shares": "80/10"}}),
        ("split.json", NONE | {"stored": STORED | {"seed": -1}}),
        ("split.json", NONE | {"stored": STORED | {"count": "9"}}),
    ],
)
def test_open_refuses_parts_that_make_no_sense(run: Run, name: str, content: dict[str, Any]) -> None:
    data = records.encode(content)
    (run.path / name).write_bytes(data)
    rewrite_config(run.path, lambda config: config["files"].update({name: records.digest(data)}))
    with pytest.raises(RunError):
        Run.open(run.path)


def rewrite(run: Run, name: str, content: dict[str, Any], **sizes: int) -> None:
    """Alter a file of a run and the sizes of its model, with checksums that fit."""
    data = (json.dumps(content) + "\n").encode()
    (run.path / name).write_bytes(data)

    def change(config: dict[str, Any]) -> None:
        config["files"][name] = records.digest(data)
        config["model"].update(sizes)

    rewrite_config(run.path, change)


@pytest.mark.parametrize("length", [1, 5, 1000, 1001])
def test_the_context_is_that_of_the_items_and_items_are_not_endless(run: Run, length: int) -> None:
    items = ITEMS | {"train": ["a" * length]}
    rewrite(run, "split.json", items, block_size=length + 1)
    if length <= 1000:
        assert Run.open(run.path).model.block_size == length + 1
        rewrite(run, "split.json", items, block_size=length + 2)
    with pytest.raises(RunError, match="a context one longer than the longest"):
        Run.open(run.path)


def test_a_run_without_items_to_train_on_is_refused(run: Run) -> None:
    rewrite(run, "split.json", ITEMS | {"train": [], "test": ["anna"]}, block_size=5)
    with pytest.raises(RunError, match="items to train on"):
        Run.open(run.path)


@pytest.mark.parametrize("stray", ["\0", "\x1b", "\x7f"])
def test_a_vocabulary_of_what_no_text_holds_is_refused(run: Run, stray: str) -> None:
    characters = sorted({*run.vocabulary.characters, stray})
    rewrite(run, "vocabulary.json", {"characters": characters}, vocab_size=len(characters) + 1)
    with pytest.raises(RunError, match="a text may hold") as caught:
        Run.open(run.path)
    assert caught.value.found == f"U+{ord(stray):04X}"


def test_random_ids_are_those_that_training_makes(run: Run) -> None:
    count, largest, origin = random_facts(run.model.block_size, run.model.vocab_size)
    parts = {"train": [0, count // 2], "validation": [count // 2, count], "test": [count, count]}
    right = TEXT | {"kind": "random", "path": None, "parts": parts}
    right |= {"count": count, "largest": largest, "origin": origin}
    rewrite(run, "split.json", ITEMS | {"train": [], "text": right})
    opened = Run.open(run.path).text
    assert opened is not None
    assert opened.count == count
    for wrong in ({"count": 2**40}, {"largest": largest - 1}, {"origin": "random"}):
        rewrite(run, "split.json", ITEMS | {"train": [], "text": right | wrong})
        with pytest.raises(RunError, match="random ids as"):
            Run.open(run.path)


def test_restore_gives_the_model_the_saved_weights(run: Run) -> None:
    model = build(run.model, seed=1)
    weights = {name: torch.rand_like(value) for name, value in model.state_dict().items()}
    run.restore(model, weights)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_restore_names_every_difference_and_changes_nothing(run: Run) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {**before, "0.weight": torch.zeros(4, 4), "2.gain": torch.zeros(1)}
    del weights["1.bias"]
    with pytest.raises(RunError) as caught:
        run.restore(model, weights)
    assert caught.value.found.startswith("missing: 1.bias; unknown: 2.gain; 0.weight of shape (4, 4)")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_result_is_none_until_it_is_written(run: Run) -> None:
    assert run.read_result() is None
    run.write_result({"test_loss": 2.0})
    run.write_result({"test_loss": 1.5, "name": "zoë"})
    assert Run.open(run.path).read_result() == {"test_loss": 1.5, "name": "zoë"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"2.0", b"1.0")),
        lambda path: path.write_bytes(records.encode({"test_loss": 1.0})),
        lambda path: path.write_bytes(records.encode(records.seal({"test_loss": 1.0, "config_sha256": "0"}))),
    ],
)
def test_a_result_that_is_not_this_runs_is_named(run: Run, damage: Callable[[Path], object]) -> None:
    run.write_result({"test_loss": 2.0})
    damage(run.path / "result.json")
    with pytest.raises(RunError, match=r"result\.json"):
        run.read_result()


def test_numbers_that_json_does_not_know_are_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="JSON"):
        run.write_result({"loss": float("nan")})
    assert run.read_result() is None


def test_every_message_has_three_parts(tmp_path: Path) -> None:
    with pytest.raises(FlashmoreError) as caught:
        Run.open(tmp_path)
    assert all((caught.value.wanted, caught.value.found, caught.value.valid))


def test_the_settings_know_what_they_were_made_from(run: Run, make_checkpoint: MakeCheckpoint) -> None:
    assert run.settings == replace(run.settings, requested=run.config)
