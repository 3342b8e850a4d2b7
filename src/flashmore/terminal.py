"""All output goes through this module, which escapes untrusted text and keeps our own styles.

File names, vocabularies, sources and exception messages may contain characters that move the cursor, change a
terminal's colours or title, or reorder a line (CVE-2021-42574). They are shown as Python escapes such as
`\\x1b` and `\\u202e`. No other module writes to stdout or stderr.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any, TextIO, cast
from unicodedata import category

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

PIPED_WIDTH = 80
"""Columns where the output is no terminal and $COLUMNS does not say."""
_DIFF = {"+": "32", "-": "31", "@": "36"}
"""ANSI colours of a diff's lines: green, red, cyan."""
_MONGOLIAN = "\u1800-\u180a\u1810-\u18aa"
_HANGUL_FIRST = "\u1100-\u115e\ua960-\ua97c"
_HANGUL_NEXT = "\u1161-\u11ff\ud7b0-\ud7fb"  # vowels and last consonants
_DUPLOYAN = "\U0001bc00-\U0001bc9f"
_HIEROGLYPHS, _OF_HIEROGLYPHS = "\U00013000-\U0001342f\U00013460-\U000143ff", "\U00013430-\U0001345f"
_HIDDEN = re.compile(
    "(?P<variation>[\ufe00-\ufe0f\U000e0100-\U000e01ef])"
    "|(?P<joiner>[\u034f\u180e\u200b-\u200d])"
    "|\r(?!\n)"
    # What one script needs, where it is not beside that script: selectors, fillers and blanks, layout.
    f"|(?<![{_MONGOLIAN}])[\u180b-\u180d\u180f]"
    f"|\u115f(?![{_HANGUL_NEXT}])"
    f"|(?<![{_HANGUL_FIRST}])\u1160"
    "|(?<![\u2801-\u28ff])\u2800"  # the blank of Braille
    f"|(?<![{_DUPLOYAN}])[\U0001bca0-\U0001bca3]"
    f"|(?<![{_HIEROGLYPHS}])(?<![{_HIEROGLYPHS}][{_OF_HIEROGLYPHS}])[{_OF_HIEROGLYPHS}]"
    "|["
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # C0 without \t and \n, DEL, C1
    "\u2028\u2029\ud800-\udfff"  # line and paragraph separators; surrogates stand for bytes that are no UTF-8
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # the controls of the bidirectional algorithm
    "\xad\u2060-\u2065\u206a-\u206f\ufeff\ufff0-\ufffb"  # invisible, and needed by no script
    "\u17b4\u17b5\u3164\uffa0\U0001d173-\U0001d17a"  # of Khmer, Hangul and music; not shown either
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"  # tags, and what Unicode reserves around them
    "]"
)


_DECISIVE = 8
"""At most so many characters before another one, and one after it, decide whether it is escaped."""


def printable(text: str) -> str:
    """Escape terminal control characters and invisible characters in text of one or several lines.

    Ordinary text in every script stays: a joiner or zero-width space after a letter, mark or symbol outside
    ASCII, one variation selector after a visible character, and script-specific ones next to their script.
    """
    return _HIDDEN.sub(_escaped, text)


def one_line(text: str) -> str:
    """The same for a file name, value or message: line feeds are escaped too."""
    return printable(text).replace("\r", "\\r").replace("\n", "\\n")


def _escaped(found: re.Match[str]) -> str:
    return found[0] if _is_needed(found) else ascii(found[0])[1:-1]


def _printable_part(text: str, start: int, stop: int) -> str:
    """The part of `printable(text)` that comes from text[start:stop]."""
    places = range(start, stop)
    return "".join(
        _escaped(found) if (found := _HIDDEN.match(text, place)) else text[place] for place in places
    )


def _is_needed(found: re.Match[str]) -> bool:
    start = found.start()
    if not start or not (found["joiner"] or found["variation"]):
        return False
    before = found.string[start - 1]
    kind = category(before)[0]
    hidden = _HIDDEN.match(found.string, start - 1)  # what stands before, unless its own script needs it
    if found["variation"]:
        return kind not in "CZ" and hidden is None
    seen = hidden is None or bool(hidden["variation"] and _is_needed(hidden))
    return before > "\x7f" and kind in "LMS" and seen


def duration(seconds: float) -> str:
    """A duration in words: 1.5 s, 4 min 12 s, 2 h 5 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def write(text: str) -> None:
    """Write text to stdout, escaped by `printable`."""
    sys.stdout.write(printable(text))


def write_as_made(pieces: Iterable[str]) -> None:
    """Write text to stdout as `write` does, flushing each piece, also into a file or a pipe.

    The last character of a piece waits for the next piece, which may decide whether it is escaped.
    """
    written = waiting = ""
    for piece in pieces:
        text = written + waiting + piece
        stop = max(len(text) - 1, len(written))
        sys.stdout.write(_printable_part(text, len(written), stop))
        sys.stdout.flush()
        written, waiting = text[:stop][-_DECISIVE:], text[stop:]
    text = written + waiting
    sys.stdout.write(_printable_part(text, len(written), len(text)))


def write_lines(lines: Iterable[str], stream: TextIO | None = None) -> None:
    """Write each string on one line of the stream, by default stdout, whatever it contains."""
    (stream or sys.stdout).write("".join(f"{one_line(line)}\n" for line in lines))


def say(*lines: str) -> None:
    """Write remarks to stderr, one per line."""
    write_lines(lines, sys.stderr)


def write_diff(lines: Iterable[str], indent: str = "", *, stderr: bool = False) -> None:
    """Write lines to stdout as `write_lines` does; diff lines after this indent in colour where there is any.

    rich decides whether there is: on a terminal, unless $NO_COLOR or TERM=dumb; elsewhere with $FORCE_COLOR.
    """
    console = Terminal(stderr=stderr)
    stream = sys.stderr if stderr else sys.stdout
    colored = console.color_system is not None and not console.no_color
    for line in map(one_line, lines):
        code = _DIFF.get(line.removeprefix(indent)[:1]) if colored and line.startswith(indent) else None
        stream.write(f"{line}\n" if code is None else f"\x1b[{code}m{line}\x1b[0m\n")


def write_patch(patch: bytes, encoding: str) -> None:
    """Write a patch to stdout: byte for byte to a file or a pipe, decoded and escaped on a terminal."""
    if sys.stdout.isatty():
        write_diff(patch.decode(encoding, "surrogateescape").replace("\r\n", "\n").split("\n")[:-1])
    else:
        _write_bytes(patch)


def write_file(data: bytes, encoding: str) -> None:
    """Write what a text file holds to stdout, as `write_patch` does."""
    if sys.stdout.isatty():
        write(data.decode(encoding, "surrogateescape"))
    else:
        _write_bytes(data)


def _write_bytes(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def write_json(document: Any, *, stderr: bool = False) -> None:
    """Write one JSON document to stdout; invisible or unencodable characters become \\uXXXX escapes."""
    stream = sys.stderr if stderr else sys.stdout
    ascii_only = not (stream.encoding or "").lower().startswith("utf")
    text = json.dumps(document, indent=2, ensure_ascii=ascii_only)
    stream.write(_HIDDEN.sub(_escaped_in_json, text) + "\n")


def _escaped_in_json(found: re.Match[str]) -> str:
    """The character as a JSON escape: two escapes above U+FFFF."""
    if _escaped(found) == found[0]:
        return found[0]
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


class _BestEffort:
    """A stream that may have no reader: failed writes are ignored."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or give up."""
        with self._giving_up():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or give up."""
        with self._giving_up():
            self._stream.flush()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            # Python and libraries would get the same error again, at the latest when the process ends.
            with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())


@contextmanager
def best_effort_stderr() -> Iterator[None]:
    """Within the context, failed writes of remarks and progress to stderr are ignored."""
    stream = cast(TextIO, _BestEffort(sys.stderr))
    with redirect_stderr(stream):
        yield


class Terminal(Console):
    """rich's console, with all printed text escaped.

    A string is one line. Markup and :emoji: codes are disabled, because names and paths may look like them.
    """

    def __init__(self, *, stderr: bool = False, soft_wrap: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)
        if not self.file.isatty():  # rich would take the width of the terminal that stdin is
            columns = os.environ.get("COLUMNS", "")
            self.width = int(columns) if columns.isdecimal() and int(columns) else PIPED_WIDTH

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, each object on its own line."""
        lines = (one_line(each) if isinstance(each, str) else each for each in objects)
        super().print(*lines, **{"sep": "\n"} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does; text is escaped, rich's own control codes are kept."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


class Cells(Table):
    """rich's table, with its cells escaped before they are measured: each is one line, in one style."""

    def add_column(self, header: RenderableType = "", *others: Any, **options: Any) -> None:
        """Add a column as rich does."""
        super().add_column(_cell(header), *others, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row as rich does."""
        super().add_row(*map(_cell, cells), **options)


def _cell(content: Any) -> Any:
    if isinstance(content, Text):  # with one style for all of it
        return Text(one_line(content.plain), content.style)
    return one_line(content) if isinstance(content, str) else content
