"""Ids on disk: whole or absent, checked when they are opened, made again where they are damaged."""

import hashlib
import json
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from flashmore.data import text as text_module
from flashmore.data.long_text import (
    LongText,
    encode_text,
    random_tokens,
    read_long_text,
    scan_text,
    scan_tokens,
    write_store,
)
from flashmore.data.prepared import Ids
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import ConfigError, DataError, RunError
from flashmore.runs import records

TEXT = "the cat sat on the mat.\nthe Žižek café 日本 …\n" * 40


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return path


def ids_of(run: Path, text: LongText, vocabulary: Vocabulary) -> list[int]:
    return [int(number) for number in text.ids(run, vocabulary)]


def store(path: Path, folder: Path) -> tuple[LongText, Vocabulary]:
    """A text with its store in a folder."""
    text, vocabulary, _ = read_long_text(path, "utf-8", "80/10/10", 16, None)
    return text.stored(folder, vocabulary), vocabulary


def test_ids_spell_the_text(source: Path, tmp_path: Path) -> None:
    text, vocabulary, size = read_long_text(source, "utf-8", "80/10/10", 16, None)
    assert vocabulary.characters == tuple(sorted(set(TEXT)))
    assert (text.kind, text.count, size) == ("characters", len(TEXT), len(set(TEXT)))
    ids = text.stored(tmp_path, vocabulary).ids(tmp_path, vocabulary)
    assert "".join(vocabulary.characters[number] for number in ids) == TEXT
    assert ids.dtype == np.uint16
    assert not ids.flags.writeable


def test_the_store_is_what_numpy_reads_as_little_endian_16_bit_numbers(source: Path, tmp_path: Path) -> None:
    text, vocabulary = store(source, tmp_path)
    assert np.fromfile(tmp_path / "tokens.bin", dtype="<u2").tolist() == ids_of(tmp_path, text, vocabulary)
    assert text.store_sha256 == hashlib.sha256((tmp_path / "tokens.bin").read_bytes()).hexdigest()


def test_small_pieces_give_the_same_store(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary, count, sha256 = scan_text(source, "utf-8")
    whole = np.concatenate(list(encode_text(source, "utf-8", vocabulary, sha256)))
    monkeypatch.setattr(text_module.read_text, "__defaults__", ("utf-8", 7))
    assert scan_text(source, "utf-8") == (vocabulary, count, sha256)
    pieces = list(encode_text(source, "utf-8", vocabulary, sha256))
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
    ids = text.stored(tmp_path / "run", vocabulary).ids(tmp_path / "run", vocabulary)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ids) == size
    assert peak < size / 1.5, "a copy of the text would be larger"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_or_foreign_store_is_made_again(source: Path, tmp_path: Path) -> None:
    text, vocabulary = store(source, tmp_path)
    right = ids_of(tmp_path, text, vocabulary)
    path = tmp_path / "tokens.bin"
    untouched = path.stat().st_mtime_ns
    assert ids_of(tmp_path, text, vocabulary) == right
    assert path.stat().st_mtime_ns == untouched, "an intact store is only read"
    for damage in (
        lambda: flip(path),
        lambda: path.write_bytes(path.read_bytes()[:-1]),
        lambda: path.write_bytes(path.read_bytes() + b"12"),
        lambda: path.write_bytes(b""),
        path.unlink,
    ):
        damage()
        assert ids_of(tmp_path, text, vocabulary) == right
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "tokens.bin"]


def test_a_damaged_store_of_a_text_that_changed_is_refused(source: Path, tmp_path: Path) -> None:
    text, vocabulary = store(source, tmp_path)
    right = ids_of(tmp_path, text, vocabulary)
    source.write_text(TEXT.replace("cat", "tac"), encoding="utf-8")
    assert ids_of(tmp_path, text, vocabulary) == right, "an intact store needs its text no more"
    flip(tmp_path / "tokens.bin")
    with pytest.raises(DataError, match="a different text"):
        text.ids(tmp_path, vocabulary)
    source.unlink()
    with pytest.raises(DataError, match="No such file"):
        text.ids(tmp_path, vocabulary)


def test_a_store_that_is_a_link_is_refused(source: Path, tmp_path: Path) -> None:
    text, vocabulary = store(source, tmp_path)
    (tmp_path / "tokens.bin").rename(tmp_path / "elsewhere")
    (tmp_path / "tokens.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="a symbolic link"):
        text.ids(tmp_path, vocabulary)


def test_a_store_that_could_not_be_finished_leaves_nothing(tmp_path: Path) -> None:
    def half() -> Iterator[Ids]:
        yield np.zeros(10, dtype=np.uint16)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_store(tmp_path / "tokens.bin", half())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs pipes with a name, and devices")
def test_a_text_is_read_twice_so_it_is_no_pipe_and_no_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.bin")
    for path, found in (
        (tmp_path / "pipe", "a pipe, which can be read only once"),
        (tmp_path / "pipe.bin", "a pipe, which can be read only once"),
        (Path("/dev/zero"), "a device"),
    ):
        with pytest.raises(DataError, match=found):
            read_long_text(path, "utf-8", "80/10/10", 16, None)


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
    with pytest.raises(DataError, match="the original file"):
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
    ids = text.stored(tmp_path, vocabulary).ids(tmp_path, vocabulary)
    assert len(ids) == text.count
    assert ids.max() == 50_256
    again = np.concatenate(list(random_tokens(text.count, 50_257)))
    np.testing.assert_array_equal(ids, again)
    with pytest.raises(ConfigError, match="no FILE"):
        read_long_text(None, "utf-8", "90/10/0", 16, None)


def test_a_text_takes_no_vocabulary_size(source: Path) -> None:
    with pytest.raises(ConfigError, match="omit --vocab-size"):
        read_long_text(source, "utf-8", "80/10/10", 16, 100)


def test_a_long_text_survives_json(source: Path) -> None:
    text, _, _ = read_long_text(source, "utf-8", "80/10/10", 16, None)
    assert records.convert(json.loads(json.dumps(asdict(text))), LongText, "a text") == text


@pytest.mark.parametrize(
    "change",
    [
        {"path": "text.txt"}, {"path": "../text.txt"}, {"path": ""}, {"encoding": "punycode"},
        {"encoding": "idna"}, {"encoding": "klingon"},
    ],
)  # fmt: skip
def test_a_record_of_a_text_names_an_absolute_path_and_an_encoding(
    source: Path, change: dict[str, str]
) -> None:
    text, _, _ = read_long_text(source, "utf-8", "80/10/10", 16, None)
    with pytest.raises(RunError) as caught:
        records.convert(asdict(text) | change, LongText, "a text")
    assert "absolute path" in caught.value.found or change["encoding"] in caught.value.found
    for path in ("/data/text.txt", "C:\\data\\text.txt"):
        assert records.convert(asdict(replace(text, path=path)), LongText, "a text").path == path


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs files that the kernel makes up")
def test_a_text_that_the_kernel_makes_up_is_never_read(source: Path, tmp_path: Path) -> None:
    # /proc/kmsg is such a file too: who reads it waits for the kernel's next message.
    text, vocabulary = store(source, tmp_path)
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(DataError, match="an empty file"):
        replace(text, path="/proc/version").ids(tmp_path, vocabulary)
    with pytest.raises(DataError, match="an empty file"):
        replace(text, kind="tokens", path="/proc/version").ids(tmp_path, vocabulary)


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_a_text_may_be_a_link_but_not_one_to_itself(source: Path, tmp_path: Path) -> None:
    text, vocabulary = store(source, tmp_path)
    right = ids_of(tmp_path, text, vocabulary)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "tokens.bin").unlink()
    assert ids_of(tmp_path, replace(text, path=str(tmp_path / "link")), vocabulary) == right
    (tmp_path / "tokens.bin").unlink()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for altered in (replace(text, path=str(tmp_path / "loop")), replace(text, path="/a\0b")):
        for kind in ("characters", "tokens"):
            with pytest.raises(DataError, match="what the run was trained on"):
                replace(altered, kind=kind).ids(tmp_path, vocabulary)


def test_a_file_much_larger_than_the_text_was_is_not_read(source: Path, tmp_path: Path) -> None:
    text, vocabulary = store(source, tmp_path)
    (tmp_path / "tokens.bin").unlink()
    source.write_bytes(b"\0" * (32 * text.count + 33))  # the first byte would be refused if it were read
    with pytest.raises(DataError, match="56,353 bytes") as caught:
        text.ids(tmp_path, vocabulary)
    assert "at most" in caught.value.wanted


@pytest.mark.parametrize("encoding", ["utf-32", "utf-7", "utf-16"])
def test_a_text_that_shrinks_most_when_it_is_kept_is_made_again(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(("\u03c9\u0313\u0342\u0345" * 500).encode(encoding))  # NFC makes one of each four
    text, vocabulary, _ = read_long_text(path, encoding, "80/10/10", 16, None)
    assert text.count == 500
    text = text.stored(tmp_path, vocabulary)
    (tmp_path / "tokens.bin").unlink()
    assert ids_of(tmp_path, text, vocabulary) == [0] * 500


@pytest.mark.skipif(os.name != "posix", reason="needs files with holes")
def test_sparse_ids_are_refused_before_they_are_read(source: Path, tmp_path: Path) -> None:
    text, vocabulary = store(source, tmp_path)
    huge = replace(text, count=2**39)
    for name in ("tokens.bin", "given.bin"):
        (tmp_path / name).write_bytes(b"12")
        os.truncate(tmp_path / name, 2**40)
    with pytest.raises(RunError, match=r"a sparse file of 1,099,511,627,776 bytes"):
        huge.ids(tmp_path, vocabulary)
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match="a sparse file"):
        replace(huge, kind="tokens", path=str(tmp_path / "given.bin")).ids(tmp_path / "run", vocabulary)
    with pytest.raises(DataError, match="a sparse file"):
        read_long_text(tmp_path / "given.bin", "utf-8", "80/10/10", 16, None)


def test_a_store_with_ids_beyond_the_largest_is_refused_although_its_checksum_fits(
    source: Path, tmp_path: Path
) -> None:
    text, vocabulary = store(source, tmp_path)
    ids = text.ids(tmp_path, vocabulary).copy()
    ids[7] = text.largest + 1
    crafted = replace(text, store_sha256=write_store(tmp_path / "tokens.bin", [ids]))
    with pytest.raises(DataError, match="a different text"):
        crafted.ids(tmp_path, vocabulary)
    # The text itself, with a vocabulary that lacks its last character.
    fewer = Vocabulary(vocabulary.characters[:-1])
    with pytest.raises(DataError, match="a different text"):
        replace(text, largest=text.largest - 1).ids(tmp_path, fewer)


@pytest.mark.skipif(os.name != "posix", reason="needs file names that are bytes")
def test_a_path_that_a_run_cannot_keep_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_long_text(folder / "text.txt", "utf-8", "80/10/10", 16, None)
    assert "\\udcff" in caught.value.found
