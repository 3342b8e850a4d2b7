"""Ids on disk: whole or absent, checked when they are opened, made again where they are damaged."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flashmore.data import text as text_module
from flashmore.data.long_text import LongText, read_long_text
from flashmore.data.tokens import Ids, encode_text, obtain, random_tokens, scan_text, scan_tokens
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import DataError, RecipeError

TEXT = "the cat sat on the mat.\nthe Žižek café 日本 …\n" * 40


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return path


def ids_of(run: Path, text: LongText, vocabulary: Vocabulary) -> list[int]:
    return [int(number) for number in text.ids(run, vocabulary)]


def test_ids_spell_the_text(source: Path, tmp_path: Path) -> None:
    text, vocabulary, size = read_long_text(source, "utf-8", "80/10/10", 16, None)
    assert vocabulary.characters == tuple(sorted(set(TEXT)))
    assert (text.kind, text.count, size) == ("characters", len(TEXT), len(set(TEXT)))
    ids = text.ids(tmp_path, vocabulary)
    assert "".join(vocabulary.characters[number] for number in ids) == TEXT
    assert ids.dtype == np.uint16
    assert not ids.flags.writeable


def test_the_store_is_what_numpy_reads_as_little_endian_16_bit_numbers(source: Path, tmp_path: Path) -> None:
    text, vocabulary, _ = read_long_text(source, "utf-8", "80/10/10", 16, None)
    ids = ids_of(tmp_path, text, vocabulary)
    assert np.fromfile(tmp_path / "tokens.bin", dtype="<u2").tolist() == ids
    header = json.loads((tmp_path / "tokens.json").read_text())
    assert (header["format"], header["dtype"], header["count"]) == (1, "<u2", len(TEXT))


def test_small_pieces_give_the_same_store(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = scan_text(source, "utf-8")
    whole = np.concatenate(list(encode_text(source, "utf-8", facts.vocabulary, facts.sha256)))
    monkeypatch.setattr(text_module.read_text, "__defaults__", ("utf-8", 7))
    assert scan_text(source, "utf-8") == facts
    pieces = list(encode_text(source, "utf-8", facts.vocabulary, facts.sha256))
    assert len(pieces) > 100
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(12):
            file.write("a line of a long text, again and again\n" * 30_000)
    size = path.stat().st_size
    (tmp_path / "run").mkdir()
    tracemalloc.start()
    text, vocabulary, _ = read_long_text(path, "utf-8", "80/10/10", 64, None)
    ids = text.ids(tmp_path / "run", vocabulary)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ids) == size
    assert peak < size / 1.5, "a copy of the text would be larger"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_or_foreign_store_is_made_again(source: Path, tmp_path: Path) -> None:
    text, vocabulary, _ = read_long_text(source, "utf-8", "80/10/10", 16, None)
    right = ids_of(tmp_path, text, vocabulary)
    store, header = tmp_path / "tokens.bin", tmp_path / "tokens.json"
    untouched = store.stat().st_mtime_ns
    assert ids_of(tmp_path, text, vocabulary) == right
    assert store.stat().st_mtime_ns == untouched, "an intact store is only read"
    for damage in (
        lambda: flip(store),
        lambda: store.write_bytes(store.read_bytes()[:-1]),
        lambda: store.write_bytes(b""),
        store.unlink,
        header.unlink,
        lambda: header.write_text("{"),
        lambda: header.write_text("[]"),
        lambda: header.write_text(header.read_text().replace(text.origin, "0" * 64)),
        lambda: header.write_text(header.read_text().replace('"format": 1', '"format": 2')),
    ):
        damage()
        assert ids_of(tmp_path, text, vocabulary) == right
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "tokens.bin", "tokens.json"]


def test_a_damaged_store_of_a_text_that_changed_is_refused(source: Path, tmp_path: Path) -> None:
    text, vocabulary, _ = read_long_text(source, "utf-8", "80/10/10", 16, None)
    right = ids_of(tmp_path, text, vocabulary)
    source.write_text(TEXT.replace("cat", "tac"), encoding="utf-8")
    assert ids_of(tmp_path, text, vocabulary) == right, "an intact store needs its text no more"
    flip(tmp_path / "tokens.bin")
    with pytest.raises(DataError, match="another one"):
        text.ids(tmp_path, vocabulary)
    source.unlink()
    with pytest.raises(DataError, match="No such file"):
        text.ids(tmp_path, vocabulary)


def test_a_store_that_could_not_be_finished_leaves_nothing(tmp_path: Path) -> None:
    def half() -> Iterator[Ids]:
        yield np.zeros(10, dtype=np.uint16)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        obtain(tmp_path / "tokens.bin", "origin", half)
    assert list(tmp_path.iterdir()) == []


def test_a_bin_file_is_used_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "given.bin"
    ids = np.arange(1000, dtype="<u2") % 50
    ids.tofile(path)
    text, vocabulary, size = read_long_text(path, "utf-8", "90/10/0", 16, None)
    assert (text.kind, text.count, size) == ("tokens", 1000, 50)
    folder = tmp_path / "run"
    folder.mkdir()
    assert ids_of(folder, text, vocabulary) == ids.tolist()
    assert list(folder.iterdir()) == []
    assert read_long_text(path, "utf-8", "90/10/0", 16, 64)[2] == 64
    with pytest.raises(DataError, match="id 49"):
        read_long_text(path, "utf-8", "90/10/0", 16, 49)
    flip(path)
    with pytest.raises(DataError, match="that file again"):
        text.ids(folder, vocabulary)


def test_bin_files_that_hold_no_ids_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "given.bin"
    for data, found in ((b"", "an empty file"), (b"abc", "3 bytes, an odd number")):
        path.write_bytes(data)
        with pytest.raises(DataError) as caught:
            scan_tokens(path)
        assert caught.value.found == found


def test_random_ids_repeat_and_stay_below_gpt2s_vocabulary(tmp_path: Path) -> None:
    text, vocabulary, size = read_long_text(None, "utf-8", "90/10/0", 16, 50_304)
    assert size == 50_304
    ids = text.ids(tmp_path, vocabulary)
    assert len(ids) == text.count
    assert ids.max() == 50_256
    again = np.concatenate(list(random_tokens(text.count, 50_257, seed=0)))
    np.testing.assert_array_equal(ids, again)
    with pytest.raises(RecipeError, match="no FILE"):
        read_long_text(None, "utf-8", "90/10/0", 16, None)


def test_a_text_takes_no_vocabulary_size(source: Path) -> None:
    with pytest.raises(RecipeError, match="without --vocabulary"):
        read_long_text(source, "utf-8", "80/10/10", 16, 100)


def test_a_long_text_survives_json(source: Path) -> None:
    text, _, _ = read_long_text(source, "utf-8", "80/10/10", 16, None)
    assert LongText.from_json(json.loads(json.dumps(text.to_json()))) == text
