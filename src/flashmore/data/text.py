"""Streaming a long text: decoding, line endings and Unicode normalisation in pieces."""

import codecs
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from flashmore.data.items import (
    ENCODINGS,
    LINE_END,
    NOT_TEXT,
    normalize,
    other_signs,
    require_encoding,
    require_few_marks,
)
from flashmore.errors import DataError
from flashmore.files import open_input

PIECE_BYTES = 1 << 18
"""Bytes per read."""

_WIDE = ("Na", "W", "F")


def read_text(path: Path, encoding: str = "utf-8", piece_bytes: int = PIECE_BYTES) -> Iterator[str]:
    """Read a text in pieces; their concatenation does not depend on the piece size.

    CRLF and CR become LF, byte-order marks are dropped, and Unicode is normalised to NFC, so that different
    encodings of the same text are equal. Everything else stays, including blank lines and spaces.

    Args:
        path: a text file.
        encoding: the file's encoding, by any name that Python knows.
        piece_bytes: bytes per read.

    Raises:
        DataError: the file is missing, a folder, unreadable, empty, binary or in another encoding, with the
            line and the byte; or the encoding is unknown.
    """
    require_encoding(encoding)
    # Text that the next piece may still change: half of a CRLF, a letter before a combining mark.
    held: list[str] = []
    empty = True
    for decoded, last in _decode_pieces(path, encoding, piece_bytes):
        # The held text has no boundary, so only the new part is searched: otherwise a long text without any
        # boundary would be searched again for every piece.
        before = held[-1][-1] if held else ""
        cut = len(decoded) if last else _last_boundary(before + decoded) - len(before)
        if last or cut >= 0:
            whole = LINE_END.sub("\n", "".join((*held, decoded[:cut])))
            require_few_marks(whole, str(path))
            piece = normalize(whole)
            held, decoded = [], decoded[cut:]
            if piece:
                empty = False
                yield piece
        if decoded:
            held.append(decoded)
    if empty:
        raise DataError(f"a text in {path}", "an empty file", "a text file with something to learn from")


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


def _decode_pieces(path: Path, encoding: str, piece_bytes: int) -> Iterator[tuple[str, bool]]:
    """Decoded pieces, each with whether it is the last."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line, half = 1, ""
    with open_input(path, f"a text file at {path}", again=True) as file:
        while True:
            data = file.read(piece_bytes)
            text = _decode(decoder, data, encoding, path, line, half)
            yield text, not data
            if not data:
                return
            # A CR at the end may be half of a CRLF: it is counted with the next piece.
            lines, half = half + text, ""
            if lines.endswith("\r"):
                lines, half = lines[:-1], "\r"
            line += len(LINE_END.findall(lines))


def _decode(
    decoder: codecs.IncrementalDecoder, data: bytes, encoding: str, path: Path, line: int, half: str
) -> str:
    """Decode one piece that starts in a line, after half a line ending; errors name line and byte."""
    wanted = f"text in {encoding} in {path}"
    valid = f"a file saved as UTF-8, or its own encoding by name: {ENCODINGS}"
    try:
        text = decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
        at = line + len(LINE_END.findall(half + error.object[: error.start].decode(encoding, "replace")))
        found = f"line {at}: byte 0x{error.object[error.start]:02x} is not {encoding} ({error.reason})"
        raise DataError(wanted, found + other_signs(data), valid) from None
    except UnicodeError as error:
        raise DataError(wanted, str(error) + other_signs(data), valid) from None
    if stray := NOT_TEXT.search(text):
        at = line + len(LINE_END.findall(half + text[: stray.start()]))
        found = f"line {at}: the character U+{ord(stray.group()):04X}, which no text holds"
        raise DataError(wanted, f"{found}; this may be a binary file", valid)
    return text
