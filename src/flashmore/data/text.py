"""Decoding and normalising text files, whole or in pieces; errors name the line."""

import codecs
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flashmore.errors import DataError
from flashmore.files import is_of_no_file, open_input

PIECE_BYTES = 1 << 18
"""Bytes per read."""
# str.splitlines() would also split at form feeds, U+2028 and others, which may occur inside a line.
LINE_END = re.compile(r"\r\n|\r|\n")
NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]")
"""Control characters that do not occur in text, and lone surrogates, which UTF-8 cannot encode."""
MOST_MARKS = 100
"""Most consecutive combining marks: Unicode's Stream-Safe Text Format (UAX 15) has at most 30. Normalisation
is quadratic in their number."""
_PLAIN = bytes(point for point in range(128) if not NOT_TEXT.match(chr(point)))
_ENCODINGS = "--encoding utf-16, latin-1, cp1252, shift_jis, gb18030 or another that Python supports"
_LATIN = "(?!.*[^\x00-\x7f]{4})[a-zA-Z¡ª«º»¿\xc0-\u024f\u2013-\u2026€]+"
_CYRILLIC = "[\u0400-\u04ff][\u0430-\u045f]*|[\u0410-\u042f]+"
_CJK = "[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7a3\uff01-\uff9f]+"
_USUAL = {
    "utf-16": ".+",
    **dict.fromkeys(("utf-16-le", "utf-16-be", "cp1252", "cp1250", "iso8859-2"), _LATIN),
    **dict.fromkeys(("cp1251", "koi8-r"), _CYRILLIC),
    "cp1253": "[\u0370-\u03ff]+",
    **dict.fromkeys(("shift_jis", "euc_jp", "gb18030", "big5", "euc_kr"), _CJK),
}
"""Encodings to suggest, and what a word outside ASCII usually looks like in them."""
_MOST_READINGS = 4
_LONGEST_STATE = len(str(2**64))
_WIDE = ("Na", "W", "F")


def require_encoding(encoding: str) -> None:
    """Refuse a name that is not a text encoding, or one that is not used for files, with a DataError."""
    found = repr(encoding)
    try:
        if not is_of_no_file(encoding):
            "a".encode(encoding, "replace")  # "replace" is needed to name the bad line
            return
        found += ", which is not an encoding of files"
    except (LookupError, ValueError):
        pass
    raise DataError("the name of a text encoding", found, f"utf-8, or {_ENCODINGS}")


def normalize(text: str) -> str:
    """Normalise text to the form in which data is stored: Unicode's NFC without byte-order marks."""
    # Concatenating files leaves byte-order marks inside the text; as a character, Unicode deprecates them.
    return unicodedata.normalize("NFC", text.replace("\ufeff", ""))


def normalize_file(text: str, source: str) -> str:
    """The same for a file's text, which may be slow to normalise: a DataError for too many marks in a row."""
    if not text.isascii() and (start := _many_marks(text)) is not None:
        raise DataError(
            f"at most {MOST_MARKS} combining marks in a row in {source}",
            f"more after {text[max(start - 10, 0) : start]!r}",
            "text without them",
        )
    return normalize(text)


def _many_marks(text: str) -> int | None:
    """The start of the first run of more than `MOST_MARKS` combining marks; None if there is none.

    Such a run includes one of every `MOST_MARKS` + 1 positions, so the others need no look.
    """
    marks = _marks()
    for at in range(MOST_MARKS, len(text), MOST_MARKS + 1):
        if text[at] in marks:
            start = stop = at
            while start and text[start - 1] in marks:
                start -= 1
            while stop < len(text) and stop - start <= MOST_MARKS and text[stop] in marks:
                stop += 1
            if stop - start > MOST_MARKS:
                return start
    return None


@cache
def _marks() -> frozenset[str]:
    # Characters that decompose into marks count as marks too.
    every = map(chr, range(sys.maxunicode + 1))
    return frozenset(char for char in every if unicodedata.combining(unicodedata.normalize("NFD", char)[0]))


def count_line_ends(text: str) -> int:
    """Number of line endings: LF, CRLF or CR."""
    return text.count("\n") + text.count("\r") - text.count("\r\n")


@dataclass(frozen=True)
class Place:
    """A place in a text that is read in pieces: everything that the pieces after it depend on."""

    offset: int = 0
    """Bytes of the file that were read."""
    undecoded: str = ""
    """The bytes among them that make no character yet, in hexadecimal."""
    state: str = "0"
    """The decoder's state, a whole number of up to 64 bits without a sign; that of `codecs` at the start."""
    line: int = 1
    half: str = ""
    held: str = ""
    """Decoded text that the next piece may still change."""


START = Place()


class Decoder:
    """Decodes a file, whole or piece by piece, from its beginning or another place."""

    def __init__(self, encoding: str, source: str, place: Place = START) -> None:
        require_encoding(encoding)
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._encoding, self._source = encoding, source
        self._line, self._half = place.line, place.half
        if place != START:
            try:
                if not place.offset > 0 or not 1 <= place.line < 2**63 or len(place.state) > _LONGEST_STATE:
                    raise ValueError
                self._decoder.setstate((bytes.fromhex(place.undecoded), int(place.state)))
            except (ValueError, OverflowError, TypeError):  # of a file that somebody else made
                found = f"no place of a decoder: {place.undecoded:.20} {place.state:.20}"
                raise DataError(f"a place in {source} after a piece", found, "begin anew") from None

    def place(self, offset: int, held: str) -> Place:
        """The place after `offset` bytes of the file, of whose text `held` is not processed yet."""
        undecoded, state = self._decoder.getstate()
        return Place(offset, undecoded.hex(), str(state), self._line, self._half, held)

    def decode(self, data: bytes, *, last: bool) -> str:
        """Decode the next piece; a DataError names the line and the byte of what is not text."""
        try:
            text = self._decoder.decode(data, final=last)
        except UnicodeDecodeError as error:
            line = self._line_after(error.object[: error.start].decode(self._encoding, "replace"))
            found = f"line {line}: byte 0x{error.object[error.start]:02x} is not {self._encoding}"
            raise self._refusal(
                f"{found} ({error.reason}){_other_signs(error.object, error.start)}"
            ) from None
        except UnicodeError as error:
            raise self._refusal(f"{error}{_other_signs(data)}") from None
        if not _is_plain(text) and (stray := NOT_TEXT.search(text)):
            found = f"the character U+{ord(stray.group()):04X}, which is not text; this may be a binary file"
            raise self._refusal(
                f"line {self._line_after(text[: stray.start()])}: {found}{_other_signs(data)}"
            )
        lines = self._half + text
        self._half = "\r" if lines.endswith("\r") else ""  # perhaps of a CRLF: counted with the next piece
        self._line += count_line_ends(lines.removesuffix("\r"))
        return text

    def _line_after(self, text: str) -> int:
        return self._line + count_line_ends(self._half + text)

    def _refusal(self, found: str) -> DataError:
        valid = f"a file in UTF-8, or for `train` and `look` its encoding: {_ENCODINGS}"
        return DataError(f"text in {self._encoding} in {self._source}", found, valid)


def _is_plain(text: str) -> bool:
    """Whether a text is ASCII without control characters, which takes a tenth of the time of `NOT_TEXT`."""
    return text.isascii() and not text.encode().translate(None, _PLAIN)


def _other_signs(data: bytes, start: int = 0) -> str:
    """Other evidence about the encoding, and how the line at `start` reads in likely ones; may be empty."""
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    sample = data[max(data.rfind(b"\n", 0, start), 0) :][:PIECE_BYTES]
    readings: dict[str, str] = {}
    for encoding, usual in _USUAL.items():
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(sample)
        except UnicodeError:
            continue
        # Letters, and anything outside ASCII: of a wrong encoding, symbols within words.
        words = [word for word in re.findall(r"[^\x00-@\[-`{-~]+", text) if not word.isascii()]
        fitting = sum(re.fullmatch(usual, word) is not None for word in words)
        if NOT_TEXT.search(text) or fitting < 0.9 * len(words):
            continue
        readings.setdefault(min(LINE_END.split(text), key=str.isascii).strip()[:40], encoding)
    shown = [f"{text!r} in {encoding}" for text, encoding in readings.items()][:_MOST_READINGS]
    signs = "; the file begins like UTF-16" * marked
    if shown:
        return f"{signs}; it could be {' or '.join(shown)}"
    return signs or "; it contains NUL bytes, like a binary file" * (b"\0" in data)


def read_text(path: Path, encoding: str = "utf-8", piece_bytes: int = PIECE_BYTES) -> Iterator[str]:
    """The pieces of `read_pieces`, from the beginning."""
    return (piece for piece, _ in read_pieces(path, encoding, START, piece_bytes))


def read_pieces(
    path: Path, encoding: str, place: Place, piece_bytes: int = PIECE_BYTES
) -> Iterator[tuple[str, Place]]:
    """Read a text in pieces, each with the place after it; their concatenation does not depend on their size.

    CRLF and CR become LF, and the rest is as `normalize` leaves it, so that different encodings of the same
    text are equal.

    Args:
        place: where to go on; `START`, or a place that came with a piece of the same text.
        piece_bytes: bytes per read.

    Raises:
        DataError: the file is missing, a folder, unreadable, empty, binary or in another encoding, with the
            line and the byte; or the encoding is unknown.
    """
    decoder = Decoder(encoding, str(path), place)
    # Text that the next piece may still change: half of a CRLF, a letter before a combining mark.
    held = [place.held] if place.held else []
    offset, empty, last = place.offset, place == START, False
    with open_input(path, f"a text file at {path}", again=True) as file:
        file.seek(offset)
        while not last:
            data = file.read(piece_bytes)
            offset, last = offset + len(data), not data
            decoded = decoder.decode(data, last=last)
            # The held text has no boundary, so only the new part is searched: otherwise a long text without
            # any boundary would be searched again for every piece.
            before = held[-1][-1] if held else ""
            cut = len(decoded) if last else _last_boundary(before + decoded) - len(before)
            if last or cut >= 0:
                whole = "".join((*held, decoded[:cut]))
                if "\r" in whole:
                    whole = whole.replace("\r\n", "\n").replace("\r", "\n")
                held, decoded = [], decoded[cut:]
                if piece := normalize_file(whole, str(path)):
                    empty = False
                    yield piece, decoder.place(offset, decoded)
            if decoded:
                held.append(decoded)
    if empty:
        raise DataError(f"a text in {path}", "an empty file", "a text file that is not empty")


def _last_boundary(text: str) -> int:
    """The last index at which a text may be split without changing the normalisation of either side.

    Such a split is before an ASCII character or one of a wide script (Unicode Standard Annex 11) that is not
    a combining mark. These never compose with the previous one, unlike marks, some vowel signs and jamo.
    """
    for at in range(len(text) - 1, 0, -1):
        character = text[at]
        joins = unicodedata.combining(character) or unicodedata.east_asian_width(character) not in _WIDE
        if not joins and text[at - 1] != "\r":
            return at
    return 0
