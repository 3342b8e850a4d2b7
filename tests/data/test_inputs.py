"""Tables, compressed files, stdin and folders become the same items as plain lines, or one clear error."""

import gzip
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashmore.data import inputs
from flashmore.data.items import Words, read_words
from flashmore.errors import DataError

Write = Callable[[bytes | str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(data: bytes | str) -> Path:
        path = tmp_path / "items"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return to_file


def parquet(columns: dict[str, list[Any]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    file = io.BytesIO()
    write_table(pyarrow.table(columns), file)
    return file.getvalue()


NAMES = ("anna", "José, the 2nd", "line\nend", "bob")
TABLES = {
    "csv": 'id,name\r\n1,anna\r\n2,"José, the 2nd"\r\n\r\n3,"line\r\nend"\r\n4,""\r\n5, bob \r\n',
    "bom": '\ufeffname,id\nanna,1\n"Jose\u0301, the 2nd",2\n"line\nend",3\nbob,4\n',
    "tsv": 'id\tname\n1\tanna\n2\tJosé, the 2nd\n3\t"line\nend"\n4\tbob\n',
    "semicolons": 'id; name\n1; anna\n2; José, the 2nd\n3; "line\nend"\n4; bob',
    "json": '{"name": "anna"}\n{"id": 1, "name": "Jos\\u00e9, the 2nd"}\n\n'
    '{"name": null}\n{"name": "line\\nend"}\n{"name": "bob"}\n{}\n',
    "array": '\ufeff [{"name": "anna"},\n{"id": 1, "name": "Jos\\u00e9, the 2nd"}, {"name": null},\n'
    '{"name": "line\\nend"}, {"name": "bob"}, {}]\n',
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_column_of_a_table_is_read(kind: str, write: Write) -> None:
    assert read_words(write(TABLES[kind]), column="name").lines == NAMES


def test_a_column_of_a_parquet_file_is_read(write: Write) -> None:
    path = write(parquet({"id": [1, 2, 3, 4, 5], "name": [*NAMES, None]}))
    assert read_words(path, column="name").lines == NAMES


@pytest.mark.parametrize("kind", TABLES)
def test_a_missing_column_is_refused_with_the_columns_found(kind: str, write: Write) -> None:
    with pytest.raises(DataError, match="a column 'nmae'") as caught:
        read_words(write(TABLES[kind]), column="nmae")
    assert "name" in caught.value.found
    assert "id" in caught.value.found


def test_a_parquet_file_needs_a_column_that_it_has_and_of_text(write: Write) -> None:
    path = write(parquet({"id": [1, 2], "name": ["a", "b"]}))
    for column, found in ((None, "the columns id, name"), ("x", "among: id, name"), ("id", "line 1: 1")):
        with pytest.raises(DataError) as caught:
            read_words(path, column=column)
        assert found in caught.value.found
    with pytest.raises(DataError, match="a valid Parquet file"):
        read_words(write(path.read_bytes()[:-9]), column="name")


def test_a_parquet_file_without_pyarrow_says_how_to_install_it(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError) as caught:
        read_words(write(b"PAR1"), column="name")
    assert caught.value.valid == "pip install 'flashmore[parquet]'"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ("id,name\n1,anna\n2,bob,x\n", "line 3: 3"),
        ("id,name\n1\n", "line 2: 1"),
        ('id,name\n1,"anna\n2,bob\n', "line 3: unexpected end of data"),
        ("name,name\na,b\n", "2 with this name"),
        ('id,name\n1,"' + "x" * 1_000_000 + '"\n', "line 2: field larger than field limit"),
        ("id,name\n1," + "x" * 1_001 + "\n", "line 2: 1,001 characters"),
        ('{"name": "anna"}\n{"name": 3}\n', "line 2: 3"),
        ('{"name": "anna"}\n["bob"]\n', "line 2: "),
        ('{"name": "anna"\n', "line 1: "),
        ('{"name": "a\\u0007"}\n', "line 1: the character U+0007"),
        ('{"name": "a\\ud800"}\n', "line 1: "),
        ('{"name": ' + "[" * 100_000 + "\n", "line 1: "),
        ('[{"name": "anna"}, {"name": 3}]', "line 2: 3"),
        ('[{"name": "anna"}, "bob"]', "Expected `object`, got `str`"),
        ('[{"name": ' + "[" * 100_000, "recursion"),
        ("name\n\n", "only blank lines"),
        ("", "an empty file"),
    ],
)
def test_a_malformed_table_is_refused_with_its_line(data: str, found: str, write: Write) -> None:
    if not data:
        found = "none with this name"
    with pytest.raises(DataError) as caught:
        read_words(write(data), column="name")
    assert found in caught.value.found


@pytest.mark.parametrize(
    ("data", "note"),
    [
        ("name,year\nanna,1\nbob,2\n", "a CSV with the columns name, year"),
        ("name\tyear\nanna\t1\nbob\t2\n", "a CSV with the columns name, year"),
        ('{"name": "a"}\n{"name": "b"}\n{"name": "c"}\n', "JSON lines with the keys name"),
        ("anna\nbob\ncy\n", ""),
        ("anna, a\nbob\ncy\n", ""),
        ("a,b\nc,d\n", ""),
    ],
)
def test_lines_that_look_like_a_table_stay_lines_with_a_note(data: str, note: str, write: Write) -> None:
    words = read_words(write(data))
    assert words.lines == tuple(data.splitlines())
    assert [note in told for told in words.notes] == [True] * bool(note)


def test_a_json_array_of_strings_is_a_list(write: Write) -> None:
    assert read_words(write('\ufeff["anna", "b\\u00f6b",\n "cy"]\n')).lines == ("anna", "böb", "cy")
    assert read_words(write('["anna"]\n["bob"]\n')).lines == ('["anna"]', '["bob"]')
    for data, found in (('[{"id": 1, "name": "anna"}]', "the columns id, name"), ('["a", 3]', "line 2: 3")):
        with pytest.raises(DataError) as caught:
            read_words(write(data))
        assert caught.value.found == found
    with pytest.raises(DataError, match="at least one item"):
        read_words(write("[]"))


def test_strings_of_a_json_array_are_cleaned_as_the_cells_of_a_table(write: Write) -> None:
    assert read_words(write('["e\\u0301va", " bob "]')).lines == ("\u00e9va", "bob")
    assert read_words(write('["anna"]'.encode("utf-16")), encoding="utf-16").lines == ("anna",)
    with pytest.raises(DataError) as caught:
        read_words(write('["bob", "an\\u0000na"]'))
    assert caught.value.found == "line 2: the character U+0000, which is not text"


def test_a_compressed_file_is_read_by_its_first_bytes(write: Write) -> None:
    members = gzip.compress(b"anna\nbob\n") + gzip.compress(b"cy\n")
    assert read_words(write(members)).lines == ("anna", "bob", "cy")
    assert read_words(write(gzip.compress(TABLES["csv"].encode())), column="name").lines == NAMES


@pytest.mark.parametrize("change", [lambda data: data[:-9], lambda data: data[:-8] + b"12345678"])
def test_a_damaged_compressed_file_is_refused(change: Callable[[bytes], bytes], write: Write) -> None:
    with pytest.raises(DataError, match="a gzip file"):
        read_words(write(change(gzip.compress(b"anna\nbob\n" * 99))))


def test_the_limit_of_a_file_holds_for_what_it_decompresses_to(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "LARGEST_FILE", 1000)
    path = write(gzip.compress(b"anna\n" * 200))
    assert len(read_words(path).lines) == 200
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        read_words(write(gzip.compress(b"anna\n" * 201)))
    path.unlink()
    (path.parent / "a").write_bytes(b"anna\n" * 100)
    (path.parent / "b").write_bytes(b"anna\n" * 101)
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        read_words(path.parent)


def test_the_rows_of_a_table_and_the_lines_of_a_folder_are_limited(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MOST_LINES", 3)
    with pytest.raises(DataError, match="at most 3 lines"):
        read_words(write(parquet({"name": ["a"] * 4})), column="name")
    (tmp_path / "items").write_text("anna\nbob\n")
    (tmp_path / "others").write_text("cy\ndan\n")
    with pytest.raises(DataError, match="at most 3 lines"):
        read_words(tmp_path)


def test_repeated_values_of_a_parquet_file_are_limited_by_what_they_fill(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(parquet({"name": ["x" * 100] * 1000}))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(inputs, "LARGEST_FILE", 20_000)
    with pytest.raises(DataError, match="at most 20,000 bytes in the column"):
        read_words(path, column="name")


def test_a_dash_is_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"anna\nbob\n")))
    assert read_words(Path("-")) == Words(("anna", "bob"), ("anna", "bob"), "-")


def test_a_folder_is_its_files_in_sorted_order_without_what_is_hidden_linked_or_below(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("bob\n")
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"anna"))
    (tmp_path / "empty").touch()
    (tmp_path / ".hidden").write_bytes(b"\0")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.txt").write_text("cy\n")
    (tmp_path / "link").symlink_to(tmp_path / "below" / "c.txt")
    assert read_words(tmp_path).lines == ("anna", "bob")
    (tmp_path / "c.txt").write_bytes(b"dan\n\xff")
    with pytest.raises(DataError, match=r"c\.txt") as caught:
        read_words(tmp_path)
    assert "line 2" in caught.value.found


@pytest.mark.parametrize(
    "data",
    [
        "n,name\n2,anna\n0,cy\n0.5,bob\n1e0,anna\n",
        '{"name": "anna", "n": 2}\n{"name": "cy", "n": 0}\n'
        '{"name": "bob", "n": 0.5}\n{"name": "anna", "n": 1}\n',
        parquet({"n": [2.0, 0.0, 0.5, 1.0], "name": ["anna", "cy", "bob", "anna"]}),
    ],
)
def test_weights_of_an_item_add_up_and_rows_of_weight_0_are_left_out(data: str | bytes, write: Write) -> None:
    words = read_words(write(data), column="name", weight="n")
    assert (words.lines, words.items, words.weights) == (
        ("anna", "bob", "anna"),
        ("anna", "bob"),
        (3.0, 0.5),
    )
    assert words.notes == ("1 item with weight 0 skipped",)


@pytest.mark.parametrize("weight", ["-1", "nan", "inf", "", "many", "1;2", "1e999"])
def test_what_is_no_weight_is_refused_with_its_line(weight: str, write: Write) -> None:
    path = write(f"name,n\nanna,1\nbob,{weight}\n")
    with pytest.raises(DataError) as caught:
        read_words(path, column="name", weight="n")
    assert caught.value.found == f"line 3: {weight!r}"
    assert "finite numbers of at least 0" in caught.value.valid


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ("name,n\nanna,0\nbob,0\n", "none"),
        ("name,n\nanna,1e308\nbob,1e308\n", "a sum too large for float64"),
        ('{"name": "anna", "n": true}\n', "line 1: True"),
        ('{"name": "anna"}\n{"name": "b", "n": 1}\n', "line 1: None"),
        ("name,m\nanna,0\nbob,0\n", "none with this name among: name, m"),
    ],
)
def test_weights_without_a_distribution_are_refused(data: str, found: str, write: Write) -> None:
    with pytest.raises(DataError) as caught:
        read_words(write(data), column="name", weight="n")
    assert caught.value.found == found
