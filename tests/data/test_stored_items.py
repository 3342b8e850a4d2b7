"""A prepared list holds the items of its file, and its batches are those of the same items in memory."""

import hashlib
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmore.data import prepared as module
from flashmore.data.batches import StoredSequences, encode_items
from flashmore.data.items import read_words
from flashmore.data.prepared import beside, prepare, read_prepared
from flashmore.data.stored_items import OpenItems, Rows, StoredItems, read_stored_items
from flashmore.data.text import START, read_pieces
from flashmore.errors import ConfigError, DataError

NAMES = [f"{first}{middle}{last}" for first in "ABCDé" for middle in ("nn", "", "日本") for last in "aeiou"]
LETTERS = " \t\r\n\x0b\x1c\u2028\u3000\ufeffab\u0301é日"


def stored(file: Path, text: str, shares: str = "80/10/10", seed: int = 1) -> StoredItems:
    file.write_text(text, encoding="utf-8", newline="")
    out = file.with_suffix(".bin")
    out.unlink(missing_ok=True)
    beside(out).unlink(missing_ok=True)
    prepare(file, out, "utf-8", "items", lambda done, total: None)
    found = read_stored_items(out, shares, seed)
    assert found is not None
    return found


def items_of(list_: StoredItems, opened: OpenItems, rows: Rows) -> list[str]:
    spans = zip(rows.starts.tolist(), rows.lengths.tolist(), strict=True)
    return ["".join(list_.order[number] for number in opened.ids[at : at + size]) for at, size in spans]


def parts_of(list_: StoredItems) -> list[list[str]]:
    opened = list_.open()
    return [items_of(list_, opened, rows) for rows in (opened.train, opened.validation, opened.test)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(text=st.text(LETTERS, max_size=60), piece_bytes=st.integers(1, 9))
def test_a_list_is_read_as_lists_are(tmp_path: Path, text: str, piece_bytes: int) -> None:
    file = tmp_path / "names.txt"
    file.write_text(text, encoding="utf-8", newline="")
    try:
        words = read_words(file)
    except DataError:
        with pytest.raises(DataError):
            stored(file, text)
        return
    whole = read_pieces.__defaults__
    read_pieces.__defaults__ = (piece_bytes,)
    try:
        list_ = stored(file, text, "100/0/0")
    finally:
        read_pieces.__defaults__ = whole
    train, validation, test = parts_of(list_)
    assert sorted(train) == sorted(words.items)
    assert not validation + test
    assert np.fromfile(list_.path, "<u2").tolist().count(0) == len(words.lines)


def test_the_part_of_an_item_depends_on_nothing_but_itself(tmp_path: Path) -> None:
    parts = parts_of(stored(tmp_path / "names.txt", "\n".join(NAMES)))
    assert sorted(chain.from_iterable(parts)) == sorted(NAMES)
    assert all(parts)
    backwards = parts_of(stored(tmp_path / "backwards.txt", "\n".join([*NAMES, *NAMES][::-1])))
    assert backwards == parts, "neither order nor repetition matters"
    more = parts_of(stored(tmp_path / "more.txt", "\n".join(f"{name}\n{name}x" for name in NAMES)))
    assert all(set(few) <= set(many) for few, many in zip(parts, more, strict=True))
    assert parts_of(stored(tmp_path / "seed.txt", "\n".join(NAMES), seed=2)) != parts


def test_the_shares_hold_for_many_items(tmp_path: Path) -> None:
    names = [np.base_repr(number, 36).lower() for number in range(20_000)]
    parts = parts_of(stored(tmp_path / "names.txt", "\n".join(names), "50/30/20"))
    for part, share in zip(parts, (0.5, 0.3, 0.2), strict=True):
        assert abs(len(part) / len(names) - share) < 0.02  # five standard deviations


def test_batches_are_those_of_the_items_in_memory(tmp_path: Path) -> None:
    list_ = stored(tmp_path / "names.txt", "\n".join(NAMES))
    opened = list_.open()
    items = items_of(list_, opened, opened.train)
    context = opened.longest + 3
    in_memory = encode_items(items, list_.vocabulary, context, "cpu")
    on_disk = StoredSequences(opened.ids, opened.train, list_.remap, context, "cpu")
    indices = torch.tensor([3, 0, 3, len(items) - 1])
    for ours, theirs in zip(on_disk.take(indices), in_memory.take(indices), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert on_disk.lengths.tolist() == in_memory.lengths.tolist()


def test_what_is_no_list_of_items_is_refused(tmp_path: Path) -> None:
    for text, found in (
        ("anna\n" + "b" * 1001 + "\n", "begins with 'bbb"),
        ("anna\n" + "b" * 3000, "begins with 'bbb"),
        (" \n\n\t\n", "only blank lines"),
    ):
        with pytest.raises(DataError) as caught:
            stored(tmp_path / "names.txt", text)
        assert found in caught.value.found
        assert [path.name for path in tmp_path.iterdir()] == ["names.txt"]
    list_ = stored(tmp_path / "names.txt", f"{' ' * 3000}anna{' ' * 3000}\nben{' ' * 3000}", "100/0/0")
    assert sorted(parts_of(list_)[0]) == ["anna", "ben"]
    for shares, seed in (("makemore", 1), ("80/10", 1), ("80/10/10", -1)):
        with pytest.raises(ConfigError):
            stored(tmp_path / "names.txt", "anna\nben", shares, seed)
    with pytest.raises(DataError, match="each part"):
        stored(tmp_path / "names.txt", "anna\nben").open()


def test_a_line_that_does_not_end_is_not_kept(tmp_path: Path) -> None:
    pieces = ((piece, START) for piece in ("anna", *[" " * 5000] * 10, "\nben", *[" " * 5000] * 10))
    found = list(module._lines(pieces, "", "names.txt"))
    assert "".join(items for items, _, _ in found) == "anna\nben\n"
    assert max(len(line) for _, _, line in found) == 1001


def test_a_damaged_or_crafted_list_is_refused(tmp_path: Path) -> None:
    list_ = stored(tmp_path / "names.txt", "\n".join(NAMES))
    out = Path(list_.path)
    right, prepared = out.read_bytes(), read_prepared(out)
    assert prepared is not None
    out.write_bytes(right[:-4] + right[:4])
    with pytest.raises(DataError, match="the original file"):
        list_.open()
    ids = np.frombuffer(right, "<u2")
    without = ids[ids != 0].tobytes()
    for data in (right[:-2], b"\0\0" + right, without * 10 + b"\0\0", without):
        out.write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        crafted = msgspec.structs.replace(prepared, count=len(data) // 2, ids_sha256=sha256)
        beside(out).write_bytes(module._sealed(crafted))
        again = read_stored_items(out, "80/10/10", 1)
        assert again is not None
        with pytest.raises(DataError, match="no end of the last one"):
            again.open()
    beside(out).write_bytes(module._sealed(msgspec.structs.replace(prepared, characters="ab")))
    with pytest.raises(DataError, match="without line feeds"):
        read_prepared(out)


@pytest.mark.parametrize("order", ["", "\n", "ab\n", "\naa"])
def test_the_order_of_a_run_has_each_character_once_and_the_line_feed_first(order: str) -> None:
    with pytest.raises(ValueError, match="no list's"):
        StoredItems("/names.bin", 9, order, "0", "80/10/10", 1)
