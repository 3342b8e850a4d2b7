"""Any text file becomes clean items, or one clear error."""

import encodings.aliases
import os
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmore.data.inputs import MOST_LINES
from flashmore.data.items import MAX_LENGTH, Words, read_words
from flashmore.data.text import normalize, read_text
from flashmore.errors import DataError

NOT_TEXT = "".join(map(chr, [*range(9), *range(14, 28), 127]))
CHARACTERS = st.characters(codec="utf-8", exclude_characters=NOT_TEXT)
LINES = st.lists(st.text(CHARACTERS.filter(lambda c: c not in "\r\n"), max_size=12), min_size=1, max_size=12)


def read_bytes(data: bytes, encoding: str = "utf-8") -> Words:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "items.txt")
        path.write_bytes(data)
        return read_words(path, encoding)


def refusal(data: bytes, encoding: str = "utf-8") -> DataError:
    with pytest.raises(DataError) as caught:
        read_bytes(data, encoding)
    assert caught.value.wanted
    assert caught.value.found
    assert caught.value.valid
    return caught.value


def test_a_file_of_lines_without_end_is_refused_before_it_is_split(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\n" * (MOST_LINES + 1))
    with pytest.raises(DataError, match="6,000,000 lines"):
        read_words(path)


def test_more_marks_on_a_letter_than_writing_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    alternating = "\u0301\u0323"  # whose order depends on all the others: normalising takes the square
    path.write_text(f"a{alternating * 50}\nb\n", encoding="utf-8")
    assert len(read_words(path).items) == 2
    decomposing = "\u0f73"  # a mark that is no combining character itself
    path.write_text(f"anna\nben{decomposing * 100_000}\n", encoding="utf-8")
    with pytest.raises(DataError, match="100 combining marks"):
        read_words(path)
    path.write_text(f"anna\nben{alternating * 100_000}\n", encoding="utf-8")
    for read in (read_words, lambda path: list(read_text(path))):
        with pytest.raises(DataError, match="100 combining marks") as caught:
            read(path)
        assert caught.value.found.endswith("n'")


def test_items_and_duplicates_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(b"mia\nemma\nmia\nava\nemma\nmia\n")
    words = read_words(path)
    assert words.lines == ("mia", "emma", "mia", "ava", "emma", "mia")
    assert words.items == ("mia", "emma", "ava")
    assert len(words.lines) - len(words.items) == 3
    assert words.source == str(path)


def test_no_file_means_the_built_in_names_whatever_the_encoding() -> None:
    words = read_words(None, "utf-16")
    assert (len(words.items), len(words.lines), words.source) == (29_910, 29_910, "built-in names")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "end"])
def test_every_line_end(end: str, last: str) -> None:
    data = (end.join(["ana", "", "  bo ", "\t", "cy"]) + (end if last else "")).encode()
    assert read_bytes(data).lines == ("ana", "bo", "cy")


@pytest.mark.parametrize("inside", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_nothing_else_ends_a_line(inside: str) -> None:
    assert read_bytes(f"one{inside}two\nthree".encode()).lines == (f"one{inside}two", "three")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_byte_order_mark_is_dropped(encoding: str) -> None:
    assert read_bytes("\ufeffána\nbo\n".encode(encoding), encoding).lines == ("ána", "bo")


def test_byte_order_mark_inside_joined_files_is_dropped() -> None:
    marked = "\ufeffana\n".encode()
    assert read_bytes(marked + marked).lines == ("ana", "ana")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "UTF8", "mac_roman"])
def test_other_encodings_by_name(encoding: str) -> None:
    assert read_bytes("josé\nzoë\n".encode(encoding), encoding).lines == ("josé", "zoë")


def test_composed_and_decomposed_are_the_same_item() -> None:
    words = read_bytes("jos\u00e9\njose\u0301\n".encode())
    assert (words.items, words.lines) == (("jos\u00e9",), ("jos\u00e9",) * 2)
    assert normalize("jose\u0301 ") == "jos\u00e9 "


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_wrong_encoding_names_the_line_and_the_option(end: bytes) -> None:
    error = refusal(end.join([b"ana", b"", "é".encode(), b"jos\xe9", b"zo"]))
    assert "line 4: byte 0xe9" in error.found
    assert "utf-8" in error.wanted
    assert "--encoding" in error.valid


def test_wrong_encoding_names_the_line_in_utf_16() -> None:
    error = refusal("\u010aana\nbo\ncy".encode("utf-16-le") + b"\x00\xd8", "utf-16-le")
    assert "line 3" in error.found


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("utf-16", "Zoë 张伟"),
        ("utf-16-le", "José"),
        ("cp1252", "don’t naïve €5"),
        ("cp1250", "Łódź Wałęsa"),
        ("cp1251", "Пётр ИВАН"),
        ("koi8-r", "Пётр"),
        ("cp1253", "Γιώργος"),
        ("shift_jis", "さとう 佐藤"),
        ("euc_jp", "さとう 佐藤"),
        ("gb18030", "张伟"),
        ("big5", "張偉"),
        ("euc_kr", "김민수"),
    ],
)
def test_a_wrong_encoding_is_told_with_likely_ones_and_how_the_file_reads_in_them(
    encoding: str, line: str
) -> None:
    found = refusal(f"anna\n{line}\nbob\n".encode(encoding)).found
    assert f"{line!r} in {encoding}" in (found.replace("anna", line) if encoding == "utf-16" else found)


def test_utf_16_of_ascii_without_a_mark_is_told_too() -> None:
    assert "'anna' in utf-16-be" in refusal("anna\nbob\n".encode("utf-16-be")).found


def test_utf_16_read_as_utf_8_says_so() -> None:
    assert "UTF-16" in refusal("ana\nbo\n".encode("utf-16")).found


@pytest.mark.parametrize("name", ["utf-9", "", "hex", "rot13", "utf-8\0", "\ud800", "x" * 9999])
def test_unknown_encoding_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(b"")
    for source in (path, None):
        with pytest.raises(DataError, match="name of a text encoding"):
            read_words(source, name)


@pytest.mark.parametrize("name", ["punycode", "idna", "undefined", "Punycode"])
def test_an_encoding_that_no_file_is_written_in_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"a" * 2**20)
    for read in (lambda: read_words(None, name), lambda: list(read_text(tmp_path / "names.txt", name))):
        with pytest.raises(DataError, match="name of a text encoding") as caught:
            read()
        assert caught.value.found == f"{name!r}, which is not an encoding of files"


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\t\n\n", "\ufeff\n\u3000\n".encode()])
def test_nothing_in_the_file(data: bytes) -> None:
    assert refusal(data).found == ("only blank lines" if data else "an empty file")


@pytest.mark.parametrize("stray", ["\0", "\x07", "\x1b", "\x7f"])
def test_binary_that_decodes_is_refused_with_its_line(stray: str) -> None:
    error = refusal(f"ana\nbo{stray}\n".encode())
    assert f"line 2: the character U+{ord(stray):04X}" in error.found
    assert "binary" in error.found


def test_binary_that_does_not_decode_is_refused() -> None:
    assert "binary" in refusal(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR").found


def test_a_wrong_byte_after_a_byte_order_mark_is_named() -> None:
    assert "line 2: byte 0xff is not utf-8-sig" in refusal(b"\xef\xbb\xbfana\nbo\xff\n", "utf-8-sig").found


def test_half_a_surrogate_pair_is_refused() -> None:
    assert "U+D800" in refusal(b"ana\n\\ud800", "unicode_escape").found


def test_longest_item_is_taken_and_one_more_is_refused() -> None:
    longest = "é" * MAX_LENGTH
    assert read_bytes(f"ana\n  {longest} \n".encode()).items == ("ana", longest)
    error = refusal(f"ana\n\n{longest}x\n".encode())
    assert error.found == "line 3: 1,001 characters"
    assert "1,000" in error.wanted
    assert "line 1: 10,000 characters" in refusal(b"x" * 10_000).found


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"ana\n")
    loop = tmp_path / "loop"
    paths = [
        tmp_path / "missing",
        tmp_path / "file" / "x",
        tmp_path / ("x" * 999),
        Path("nul\0nul"),
    ]
    if os.name == "posix":
        loop.symlink_to(loop)
        paths.append(loop)
    for path in paths:
        with pytest.raises(DataError) as caught:
            read_words(path)
        assert str(path) in caught.value.wanted
        assert "the path of a readable file" in caught.value.valid
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="none"):
        read_words(tmp_path / "empty")


def test_file_without_the_right_to_read_it(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(b"ana\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(DataError, match="ermission"):
        read_words(path)


@given(LINES, st.sampled_from(["\n", "\r\n", "\r"]))
@settings(deadline=None)
def test_reading_keeps_every_item_and_cleans_it(lines: list[str], end: str) -> None:
    expected = [unicodedata.normalize("NFC", line.replace("\ufeff", "")).strip() for line in lines]
    data = end.join(lines).encode()
    if not any(expected):
        refusal(data)
        return
    words = read_bytes(data)
    assert words.lines == tuple(line for line in expected if line)
    assert set(words.items) == set(words.lines)
    assert list(words.items) == sorted(set(words.lines), key=words.lines.index)


@given(LINES)
@settings(deadline=None)
def test_cleaned_items_read_the_same_again(lines: list[str]) -> None:
    try:
        once = read_bytes("\n".join(lines).encode())
    except DataError:
        return
    again = read_bytes("\n".join(once.lines).encode())
    assert (again.lines, again.items) == (once.lines, once.items)


@given(st.binary(max_size=60), st.sampled_from(sorted({"punycode", *encodings.aliases.aliases.values()})))
@settings(deadline=None, max_examples=400)
def test_any_bytes_in_any_encoding_are_read_or_refused(data: bytes, encoding: str) -> None:
    try:
        words = read_bytes(data, encoding)
    except DataError:
        return
    assert words.items
    "".join(words.lines).encode()


def test_reading_needs_no_torch() -> None:
    code = "import sys, flashmore.data.items, flashmore.data.vocabulary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
