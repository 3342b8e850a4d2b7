"""A pack opens like its run, holds no more than it must, and is refused if it was altered."""

import gc
import json
import socket
import struct
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest
from safetensors.torch import load

from flashmore.config import TrainConfig
from flashmore.errors import UsageError
from flashmore.runs import Run
from flashmore.training.loop import train

Call = Callable[..., CompletedProcess[str]]
Document = Callable[..., Any]
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def packed(trained: Path, process: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packs") / "new" / "names.pack"
    done = process("pack", trained, "--out", path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert f"into {path}: {path.stat().st_size:,} bytes" in done.stderr
    return path


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    gc.collect()  # the traceback of a refusal holds its run
    assert not list(folder.iterdir())


def test_a_pack_generates_scores_and_compares_as_its_run_without_labels(
    trained: Path, packed: Path, call: Call, document: Document
) -> None:
    given = ("--count", 20, "--seed", 3)
    made, same = document("generate", trained, *given), document("generate", packed, *given)
    assert same["tally"] is None
    for name, other in zip(made["names"], same["names"], strict=True):
        assert other == name | {"novelty": "unknown"}
    assert "this run has no items here" in call("generate", packed, *given).stderr
    (scored,), (again,) = (document("score", run, "dan") for run in (trained, packed))
    assert again == scored | {"novelty": "unknown"}
    first, second = document("compare", trained, packed)
    for field in ("test_loss", "val_loss", "best_step", "steps", "parameters"):
        assert first[field] == second[field]
    assert second["run"] == str(packed)
    assert "test losses may not be comparable" in call("compare", trained, packed).stderr


@pytest.mark.parametrize("option", ["--new-only", "--nearest", "--ngram"])
def test_options_that_need_the_items_are_refused(
    option: str, packed: Path, call: Call, refusal: Refusal
) -> None:
    message = refusal(call("generate", packed, option), 2)
    assert f"a run with its training items for {option}" in message
    assert "--with-items" in message


def test_a_pack_holds_neither_items_nor_paths_nor_the_optimizer(trained: Path, packed: Path) -> None:
    with ZipFile(packed) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert {"config.json", "vocabulary.json", "split.json", "result.json"} <= files.keys()
    assert sum(name.startswith("step-") for name in files) == 1
    assert json.loads(files["split.json"])["train"] == []
    texts = b"".join(data for name, data in files.items() if name.endswith(".json"))
    assert str(trained).encode() not in texts
    assert str(Path(Run.open(trained).config["file"]).parent).encode() not in texts
    assert socket.gethostname().encode() not in texts
    tensors = [name for file, data in files.items() if file.endswith("tensors") for name in load(data)]
    assert tensors
    assert all(name.startswith("weights.") for name in tensors)


def test_with_items_a_pack_gives_the_same_documents(
    trained: Path, call: Call, document: Document, refusal: Refusal, packed: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.pack"
    assert call("pack", trained, "--out", whole, "--with-items").returncode == 0
    given = ("--count", 9, "--seed", 3, "--nearest")
    assert document("generate", whole, *given) == document("generate", trained, *given)
    assert Run.open(whole).split == Run.open(trained).split
    assert call("pack", whole, "--out", tmp_path / "again.pack").returncode == 0
    assert (tmp_path / "again.pack").stat().st_size < whole.stat().st_size
    message = refusal(call("pack", packed, "--out", tmp_path / "third.pack", "--with-items"), 2)
    assert "a pack without items" in message


def test_a_pack_is_not_trained_on(
    packed: Path, call: Call, refusal: Refusal, tmp_path: Path, quick: tuple[object, ...]
) -> None:
    assert "a pack has neither the optimizer's state" in refusal(call("train", "--resume", packed), 2)
    with ZipFile(packed) as archive:
        archive.extractall(tmp_path / "run")
    assert "a pack has neither the optimizer's state" in refusal(
        call("train", "--resume", tmp_path / "run"), 2
    )
    assert "a file" in refusal(call(*quick, "--out", packed), 2)


def test_what_cannot_be_packed_is_refused(
    trained: Path, unfinished: Path, call: Call, refusal: Refusal, tmp_path: Path
) -> None:
    assert "flashmore train --resume" in refusal(call("pack", unfinished, "--out", tmp_path / "x"), 2)
    assert "outside the run's folder" in refusal(call("pack", trained, "--out", trained / "x"), 2)
    assert "no such folder" in refusal(call("pack", tmp_path / "gone", "--out", tmp_path / "x"), 2)
    assert not (tmp_path / "x").exists()


def test_a_run_on_a_text_is_packed_without_its_text(
    call: Call, document: Document, refusal: Refusal, tmp_path: Path
) -> None:
    (tmp_path / "book.txt").write_text("a rose is a rose is a rose\n" * 40)
    config = TrainConfig(
        file=tmp_path / "book.txt", mode="text", model="bigram", block_size=8, max_steps=3, device="cpu"
    )
    train(config, tmp_path / "run")
    pack = tmp_path / "text.pack"
    assert call("pack", tmp_path / "run", "--out", pack).returncode == 0
    given = ("--length", 30, "--seed", 1)
    assert document("generate", pack, *given) == document("generate", tmp_path / "run", *given)
    assert str(tmp_path).encode() not in pack.read_bytes()
    assert "one long text" in refusal(
        call("pack", tmp_path / "run", "--out", tmp_path / "more.pack", "--with-items"), 2
    )


def test_an_existing_file_is_never_overwritten(
    trained: Path, call: Call, refusal: Refusal, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("anna\n", encoding="utf-8")
    assert f"{names} exists" in refusal(call("pack", trained, "--out", names), 2)
    assert names.read_text(encoding="utf-8") == "anna\n"


def test_every_altered_file_in_a_pack_is_refused(
    packed: Path, tmp_path: Path, call: Call, refusal: Refusal
) -> None:
    data = packed.read_bytes()
    copy = tmp_path / "copy.pack"
    with ZipFile(packed) as archive:
        entries = archive.infolist()
    for entry in entries:
        start = entry.header_offset + 30 + len(entry.filename)
        for place in range(start, start + entry.file_size, 1 + entry.file_size // 7):
            copy.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(UsageError) as caught:
                Run.open(copy)
            assert str(copy) in caught.value.wanted
    for size in range(0, len(data), 1 + len(data) // 40):
        copy.write_bytes(data[:size])
        with pytest.raises(UsageError):
            Run.open(copy)
    assert "pack of `flashmore pack --out FILE`" in refusal(call("generate", copy), 2)


def test_a_changed_value_with_a_right_zip_is_refused(packed: Path, tmp_path: Path) -> None:
    """The zip's own checksums fit; those of the run do not."""
    copy = tmp_path / "copy.pack"
    for changed in ("config.json", "vocabulary.json", "split.json", "result.json"):
        with ZipFile(packed) as archive, ZipFile(copy, "w", ZIP_STORED) as made:
            for name in archive.namelist():
                data = archive.read(name)
                made.writestr(name, data.replace(b"1", b"2", 1) + b" " if name == changed else data)
        with pytest.raises(UsageError) as caught:
            Run.open(copy)
        assert f"{copy}/" in caught.value.wanted


def zip_of(files: list[tuple[str, bytes]], method: int = ZIP_STORED) -> bytes:
    made = BytesIO()
    with ZipFile(made, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return made.getvalue()


def commented(data: bytes) -> bytes:
    return data[:-2] + struct.pack("<H", 4) + b"zip!"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "an empty file"),
        (b"anna\nbob\n", "a file that is not a pack"),
        (zip_of([("../evil", b"x")]), "../evil"),
        (zip_of([("/tmp/evil", b"x")]), "/tmp/evil"),
        (
            zip_of([("config.json", b"x"), ("config.jsom", b"y")]).replace(b"jsom", b"json"),
            "config.json, config.json",
        ),
        (zip_of([("config.json", b"x" * 1000)], ZIP_DEFLATED), "compressed"),
        (zip_of([(f"{number}", b"") for number in range(9)]), "a zip file that is not a pack"),
        (commented(zip_of([("config.json", b"{}")])), "a file that is not a pack, or is truncated"),
        (zip_of([("config.json", b"{}")]), "format"),
        (zip_of([]), "config.json"),
    ],
)
def test_other_files_are_refused(
    data: bytes, told: str, tmp_path: Path, call: Call, refusal: Refusal
) -> None:
    (tmp_path / "x.pack").write_bytes(data)
    message = refusal(call("generate", tmp_path / "x.pack"), 2)
    assert told in message
    assert f"{tmp_path / 'x.pack'}" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pack"]


def test_bytes_before_the_zip_and_a_place_that_is_none_are_refused(packed: Path, tmp_path: Path) -> None:
    data, copy = packed.read_bytes(), tmp_path / "copy.pack"
    moved = data[:-6] + struct.pack("<L", 2**32 - 1) + data[-2:]  # of the zip's directory
    for altered in (b"x" + data, moved):
        copy.write_bytes(altered)
        with pytest.raises(UsageError) as caught:
            Run.open(copy)
        assert caught.value.found == "a zip file that is not a pack"


def test_a_pack_without_its_result_is_refused(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pack"
    with ZipFile(packed) as archive:
        files = [(name, archive.read(name)) for name in archive.namelist() if name != "result.json"]
    copy.write_bytes(zip_of(files))
    with pytest.raises(UsageError) as caught:
        Run.open(copy)
    assert caught.value.found == "a pack without result.json"
