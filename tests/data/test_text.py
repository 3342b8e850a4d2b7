"""Reading one long text in pieces gives what reading it whole gives; bad input is named with its place."""

import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmore.data.text import MOST_MARKS, normalize_file, read_text
from flashmore.errors import DataError

# What may join its neighbour: accents, CRLF, Hangul jamo, Indic vowel signs, kana marks, byte-order marks.
JOINING = "ae\u0301\u0323\u030a\u1100\u1161\u11a8가\u09c7\u09beか\u3099\ufeff\r\n \u0345\u03b1Å\uf900x"
texts = st.one_of(
    st.text(st.sampled_from(JOINING) | st.characters(min_codepoint=32, exclude_categories=["Cs"])),
    # No place for a cut, or a rare one: what is held grows over many pieces.
    st.text("\u0643\u062a\u0627\u0628\u0e44\u0e17\u0e22\u0301\u0323\u0653\u0654\u09c7\u09be\r", min_size=8),
    st.text("\u0643\u0627\u0627\u0627\u0653\u0654\u0654\r\r\na", min_size=8),
)


def as_whole(text: str) -> str:
    """What a text is kept as, computed on all of it at once."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", lines.replace("\ufeff", ""))


def write(folder: Path, data: bytes) -> Path:
    path = folder / "text.txt"
    path.write_bytes(data)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    text=texts.filter(lambda text: "\x7f" not in text and as_whole(text)),
    piece_bytes=st.integers(1, 9),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-32-be"]),
)
def test_pieces_of_any_size_make_the_whole(
    tmp_path: Path, text: str, piece_bytes: int, encoding: str
) -> None:
    path = write(tmp_path, text.encode(encoding))
    assert "".join(read_text(path, encoding, piece_bytes)) == as_whole(text)


def test_every_composing_pair_survives_a_cut_between_its_characters(tmp_path: Path) -> None:
    pairs = {
        unicodedata.normalize("NFD", chr(point))
        for point in range(0x110000)
        if not 0xD800 <= point < 0xE000 and unicodedata.decomposition(chr(point))[:1] not in ("", "<")
    }
    text = "".join(sorted(pair for pair in pairs if len(pair) > 1))
    path = write(tmp_path, text.encode("utf-32-le"))
    assert "".join(read_text(path, "utf-32-le", 4)) == unicodedata.normalize("NFC", text)


def test_the_search_for_a_cut_is_linear_where_there_is_none(tmp_path: Path) -> None:
    def calls(characters: int) -> int:
        """Calls of built-in functions while a text without ASCII and wide characters is read."""
        path = write(tmp_path, ("\u0643\u062a\u0627\u0628" * (characters // 4)).encode())
        count = 0

        def profile(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event == "c_call"

        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            pieces = list(read_text(path, piece_bytes=64))
        finally:
            sys.setprofile(before)
        assert len(pieces) == 1
        return count

    assert calls(16_000) < 2.5 * calls(8_000)


def test_a_run_of_too_many_marks_is_found_wherever_it_starts() -> None:
    for start in range(2 * MOST_MARKS + 5):
        marks, end = "\u0301" * MOST_MARKS, "y\u0301" * 200
        assert normalize_file("x" * start + marks + end, "text")
        with pytest.raises(DataError, match="at most 100 combining marks"):
            normalize_file("x" * start + marks + "\u0301" + end, "text")


def test_only_line_ends_marks_and_unicode_form_change(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf  two  spaces\r\n\r\n\ttab\rcafe\xcc\x81 \n\n")
    assert "".join(read_text(path)) == "  two  spaces\n\n\ttab\ncafé \n\n"


@pytest.mark.parametrize("piece_bytes", [1, 3, 1000])
@pytest.mark.parametrize(
    ("data", "encoding", "found"),
    [
        (b"one\r\ntwo\rthree\n\xff", "utf-8", "line 4: byte 0xff is not utf-8"),
        (
            b"one\n\ntwo\x07",
            "utf-8",
            "line 3: the character U+0007, which is not text; this may be a binary",
        ),
        (b"one\ncut \xe2\x82", "utf-8", "line 2: byte 0xe2 is not utf-8"),
        (b"\r\n\r\n\x81", "cp1252", "line 3: byte 0x81 is not cp1252"),
        (b"", "utf-8", "an empty file"),
        (b"\xef\xbb\xbf", "utf-8", "an empty file"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(
    tmp_path: Path, data: bytes, encoding: str, found: str, piece_bytes: int
) -> None:
    with pytest.raises(DataError) as caught:
        list(read_text(write(tmp_path, data), encoding, piece_bytes))
    assert caught.value.found.startswith(found)


def test_no_file_a_folder_and_an_unknown_encoding_are_refused(tmp_path: Path) -> None:
    for path, found in ((tmp_path / "absent", "No such file"), (tmp_path, "a folder")):
        with pytest.raises(DataError) as caught:
            list(read_text(path))
        assert caught.value.found.startswith(found)
    for encoding in ("klingon", "base64"):
        with pytest.raises(DataError, match="encoding"):
            list(read_text(write(tmp_path, b"a"), encoding))
