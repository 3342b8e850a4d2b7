"""Reading items, one a line: decoding, cleaning, and counting duplicates."""

import codecs
import re
import sys
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from flashmore.errors import DataError
from flashmore.files import is_of_no_file, open_input

MAX_LENGTH = 1000
"""Longest item in characters."""
LARGEST_FILE = 2**27
"""Bytes of a file of items, which is read whole."""

MOST_LINES = 6_000_000

BUILT_IN = "built-in names"
"""The source of `Words` that come from the package itself (see NAMES.md)."""

# str.splitlines() would also cut at form feeds, U+2028 and others, which may stand inside an item.
LINE_END = re.compile(r"\r\n|\r|\n")
"""What ends a line."""
NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]")
"""Control characters that no text needs, and halves of surrogate pairs, which cannot be written as UTF-8."""
MOST_MARKS = 100
"""Combining marks in a row: Unicode's Stream-Safe Text Format (UAX 15) has at most 30. Normalising takes the
square of their number."""
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ENCODINGS = "--encoding utf-16, latin-1, cp1252, shift_jis, gb18030 or another that Python knows"
"""What to try where the bytes are not in the encoding that was named."""


@dataclass(frozen=True)
class Words:
    """The items of a file, cleaned."""

    lines: tuple[str, ...]
    """Every item in the order of the file, duplicates kept."""
    items: tuple[str, ...]
    """Each different item once, in order of first appearance."""
    duplicates: int
    """How many lines repeat an earlier one: `len(lines) - len(items)`."""
    source: str
    """The path as it was given, or `built-in names`."""


def read_words(path: Path | None, encoding: str = "utf-8") -> Words:
    """Read one item a line.

    Lines end with LF, CRLF or CR. Byte-order marks, blank lines and the spaces around an item are dropped,
    and Unicode is normalised, so that the same item typed in two ways is one item.

    Args:
        path: a text file; None for the built-in names, which are UTF-8 whatever `encoding` says.
        encoding: the file's encoding, by any name that Python knows.

    Raises:
        DataError: the file is missing, a folder, unreadable, empty, blank, binary or in another encoding; a
            line is longer than `MAX_LENGTH`; or the encoding is unknown.
    """
    require_encoding(encoding)
    if path is None:
        source, encoding = BUILT_IN, "utf-8"
        data = resources.files("flashmore.data").joinpath("names.txt").read_bytes()
    else:
        source = str(path)
        data = _read_bytes(path)
    lines = _clean_lines(_decode(data, encoding, source), source)
    items = tuple(dict.fromkeys(lines))
    return Words(lines, items, len(lines) - len(items), source)


def normalize(text: str) -> str:
    """Bring text into the form in which items are kept, so that what a user types can be looked up.

    The form is Unicode's NFC (Unicode Standard Annex 15) without byte-order marks; surrounding spaces stay.
    """
    # A mark inside the text is what joining files leaves; as a character, Unicode has retired it.
    return unicodedata.normalize("NFC", text.replace("\ufeff", ""))


def require_few_marks(text: str, source: str) -> None:
    """Refuse text that takes long to normalise.

    Raises:
        DataError: more than `MOST_MARKS` combining marks in a row.
    """
    if not text.isascii() and (found := _many_marks().search(text)):
        raise DataError(
            f"at most {MOST_MARKS} combining marks in a row in {source}",
            f"more of them after {text[max(found.start() - 10, 0) : found.start()]!r}",
            "text without them",
        )


@cache
def _many_marks() -> re.Pattern[str]:
    # What decomposes into marks counts as one, too.
    every = map(chr, range(sys.maxunicode + 1))
    marks = "".join(char for char in every if unicodedata.combining(unicodedata.normalize("NFD", char)[0]))
    return re.compile(f"[{marks}]{{{MOST_MARKS + 1}}}")


def require_encoding(encoding: str) -> None:
    """Refuse a name that is no text encoding.

    Raises:
        DataError: Python knows no text encoding of that name, or one that no file is written in.
    """
    found = repr(encoding)
    try:
        if not is_of_no_file(encoding):
            # bytes.decode would take any name for an empty file; "replace" is what naming the bad line needs.
            "a".encode(encoding, "replace")
            return
        found += ", which Python knows, but no file is written in it"
    except (LookupError, ValueError):
        pass
    raise DataError("the name of a text encoding", found, f"utf-8, or {ENCODINGS}")


def _read_bytes(path: Path) -> bytes:
    wanted = f"a text file with one item a line at {path}"
    valid = "the path of a file that you may read, or no file for the built-in names"
    with open_input(path, wanted, valid) as file:
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise DataError(wanted, f"more than {LARGEST_FILE:,} bytes", "a smaller file, or --mode text")
    return data


def _decode(data: bytes, encoding: str, source: str) -> str:
    wanted = f"text in {encoding} in {source}"
    valid = f"a file saved as UTF-8, or its own encoding by name: {ENCODINGS}"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = _line_at(data[: error.start].decode(encoding, "replace"))
        found = f"line {line}: byte 0x{data[error.start]:02x} is not {encoding} ({error.reason})"
        raise DataError(wanted, found + other_signs(data), valid) from None
    except UnicodeError as error:
        raise DataError(wanted, str(error) + other_signs(data), valid) from None
    if stray := NOT_TEXT.search(text):
        code = f"U+{ord(stray.group()):04X}"
        found = f"line {_line_at(text[: stray.start()])}: the character {code}, which no text holds"
        raise DataError(wanted, f"{found}; this may be a binary file", valid)
    return text


def _line_at(before: str) -> int:
    return len(LINE_END.findall(before)) + 1


def other_signs(data: bytes) -> str:
    """What else speaks against the encoding, to be added to a message; empty where nothing does."""
    if data.startswith(_UTF_16_MARKS):
        return "; the file begins as UTF-16 does"
    if b"\0" in data:
        return "; it holds NUL bytes, as binary files do"
    return ""


def _clean_lines(text: str, source: str) -> tuple[str, ...]:
    wanted = f"at least one item in {source}"
    valid = "a text file with one item a line"
    if not text:
        raise DataError(wanted, "an empty file", valid)
    require_few_marks(text, source)
    count = text.count("\n") + text.count("\r") - text.count("\r\n")
    if count > MOST_LINES:
        allowed = f"at most {MOST_LINES:,} lines in {source}"
        raise DataError(allowed, f"{count:,}", "a smaller file, or --mode text")
    lines = [line.strip() for line in LINE_END.split(normalize(text))]
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LENGTH:
            raise DataError(
                f"items of at most {MAX_LENGTH:,} characters in {source}",
                f"line {number}: {len(line):,} characters",
                f"{valid}, each of 1 to {MAX_LENGTH:,} characters",
            )
    items = tuple(line for line in lines if line)
    if not items:
        raise DataError(wanted, "only blank lines", valid)
    return items
