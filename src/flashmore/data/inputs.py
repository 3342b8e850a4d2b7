"""Input files of items: lines, or a column of CSV, TSV, JSON or Parquet; gzip; stdin; a folder."""

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from flashmore.data.text import LINE_END, Decoder, count_line_ends, normalize_file
from flashmore.errors import DataError
from flashmore.files import open_input

LARGEST_FILE = 2**27
"""Most bytes of all files of items together, decompressed; they are read into memory."""
MOST_LINES = 6_000_000
STDIN = Path("-")
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_PEEKED = 20
"""Lines that decide whether a file looks like a table."""
_SMALLER = "a smaller file, or --mode text"


def read_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each file's name and decompressed content: of a path, of stdin for `-`, or of a folder in sorted order.

    Of a folder, the regular files are read, without links, hidden files and subfolders.

    Raises:
        DataError: a file is missing, unreadable, damaged or too large; or a folder has no such files.
    """
    wanted = f"a text file at {path} with one item per line"
    valid = "the path of a readable file"
    try:
        entries = sorted(path.iterdir()) if path.is_dir() else None
    except OSError as error:
        raise DataError(wanted, error.strerror or str(error), valid) from None
    files = [path]
    if entries is not None:
        files = [e for e in entries if e.is_file() and not e.is_symlink() and not e.name.startswith(".")]
        if not files:
            raise DataError(f"text files in {path}", "none", valid)
    left = LARGEST_FILE
    for file in files:
        if file == STDIN:
            data = sys.stdin.buffer.read(left + 1)
        else:
            with open_input(file, wanted, valid) as opened:
                data = opened.read(left + 1)
        if data.startswith(_GZIP) and len(data) <= left:
            try:
                data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(left + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(
                    f"a gzip file at {file}", str(error), "an undamaged copy of the file"
                ) from None
        left -= len(data)
        if left < 0:
            raise DataError(wanted, f"more than {LARGEST_FILE:,} bytes", _SMALLER)
        yield "stdin" if file == STDIN else str(file), data


def read_array(data: bytes, source: str, encoding: str) -> list[Any] | None:
    """The values in a JSON array; None for another file, such as a list whose first line begins with `[`.

    Raises:
        DataError: another encoding, too many values, or objects, which need a column.
    """
    if not _is_array(data[:1000].decode(encoding, "ignore")):
        return None
    try:
        found: list[Any] = msgspec.json.decode(
            _decoded(data, source, encoding).lstrip("\ufeff"), type=list[Any]
        )
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return None
    require_few(len(found), source)
    for each in found:
        if isinstance(each, dict):
            _places((), [*each], source)  # refuses it
    return found


def read_lines(data: bytes, source: str, encoding: str) -> list[str]:
    """The lines of a text; a DataError for another encoding, too many lines, or Parquet."""
    if data.startswith(_PARQUET):
        [*_parquet(data, source, ())]  # refuses it
    text = _decoded(data, source, encoding)
    return LINE_END.split(normalize_file(text, source))


def read_columns(
    data: bytes, source: str, encoding: str, columns: Sequence[str]
) -> Iterator[tuple[int, Sequence[Any]]]:
    """The line or row number and the values of some columns, for each row of a table.

    It is Parquet if it begins as such, JSON lines if its first character is `{`, a JSON array of objects if
    it is `[`, else CSV: separated by tabs if its header has one, else by semicolons if it has no comma.

    Raises:
        DataError: another encoding, no such column, a malformed or ragged row, or too many.
    """
    if data.startswith(_PARQUET):
        yield from _parquet(data, source, columns)
        return
    text = _decoded(data, source, encoding).lstrip("\ufeff")
    is_json = text.lstrip()[:1] == "{" or _is_array(text)
    yield from (_json if is_json else _csv)(text, source, columns)


def _is_array(text: str) -> bool:
    return text[:1000].lstrip("\ufeff \t\r\n")[:1] == "["


def _decoded(data: bytes, source: str, encoding: str) -> str:
    text = Decoder(encoding, source).decode(data, last=True)
    require_few(count_line_ends(text), source)
    return text


def require_few(count: int, source: str) -> None:
    """Refuse more than `MOST_LINES` lines or items with a DataError."""
    if count > MOST_LINES:
        raise DataError(f"at most {MOST_LINES:,} lines in {source}", f"{count:,}", _SMALLER)


def looks_like(lines: Sequence[str]) -> str | None:
    """The kind and the columns of the table that lines look like; None for a list."""
    filled = [line for line in lines[:_PEEKED] if line.strip()]
    if len(filled) < 3:
        return None
    try:
        rows = [msgspec.json.decode(line, type=dict[str, Any]) for line in filled]
        return f"JSON lines with the keys {', '.join(rows[0])}"
    except (msgspec.MsgspecError, RecursionError):
        pass
    try:
        header, *others = csv.reader(filled, delimiter=_delimiter(filled[0]), skipinitialspace=True)
    except csv.Error:
        return None
    names = [name.strip() for name in header]
    if len(names) > 1 and all(names) and all(len(row) == len(names) for row in others):
        return f"a CSV with the columns {', '.join(names)}"
    return None


def _delimiter(header: str) -> str:
    return "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","


def _places(columns: Sequence[str], names: Sequence[str], source: str) -> list[int]:
    shown = ", ".join(names)
    if not columns:
        raise DataError(f"--column for {source}", f"the columns {shown}", "--column with one of these names")
    for column in columns:
        if names.count(column) != 1:
            found = f"{names.count(column) or 'none'} with this name among: {shown}"
            raise DataError(f"a column '{column}' in {source}", found, "the name of one of its columns")
    return [names.index(column) for column in columns]


def _csv(text: str, source: str, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    delimiter = _delimiter(LINE_END.split(text, 1)[0])
    reader = csv.reader(io.StringIO(text, ""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        header = next(reader, [])
        places = _places(columns, [name.strip() for name in header], source)
        for row in reader:
            if row and len(row) != len(header):
                wanted = f"{len(header)} fields in each row of {source}, as in its header"
                found = f"line {reader.line_num}: {len(row)}"
                raise DataError(wanted, found, "a row with all fields; quote fields that contain a separator")
            if row:
                yield reader.line_num, [row[place] for place in places]
    except csv.Error as error:
        found = f"line {reader.line_num}: {error}"
        raise DataError(f"valid CSV in {source}", found, "fields quoted as in RFC 4180") from None


def _json(text: str, source: str, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    names: dict[str, None] = {}
    for number, row in (_json_array if _is_array(text) else _json_lines)(text, source):
        if not names.keys() >= row.keys():
            names |= dict.fromkeys(row)
        yield number, [row.get(column) for column in columns]
    _places(columns, [*names], source)


def _json_lines(text: str, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    wanted = f"a JSON object on each line of {source}"
    for number, line in enumerate(LINE_END.split(text), start=1):
        if line.strip():
            try:
                yield number, msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
                raise DataError(wanted, f"line {number}: {error}", "JSON Lines, see jsonlines.org") from None


def _json_array(text: str, source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        rows = msgspec.json.decode(text, type=list[dict[str, Any]])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        wanted = f"a JSON array of objects in {source}"
        raise DataError(wanted, str(error), '[{"name": "anna"}, …]') from None
    require_few(len(rows), source)
    yield from enumerate(rows, start=1)


def _parquet(data: bytes, source: str, columns: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        wanted, valid = f"pyarrow, to read the Parquet file {source}", "pip install 'flashmore[parquet]'"
        raise DataError(wanted, "it is not installed", valid) from None
    try:
        table = ParquetFile(io.BytesIO(data))
        _places(columns, table.schema_arrow.names, source)
        require_few(table.metadata.num_rows, source)
        count = size = 0
        for batch in table.iter_batches(1024, columns=[*columns]):
            size += batch.nbytes  # repeated values are stored once in the file, but not in memory
            if size > LARGEST_FILE:
                wanted = f"at most {LARGEST_FILE:,} bytes in the column of {source}"
                raise DataError(wanted, "more", _SMALLER)
            cells = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
            yield from enumerate(cells, start=count + 1)
            count += batch.num_rows
    except (pyarrow.ArrowException, OSError, ValueError, UnicodeError) as error:
        found = str(error).partition("\n")[0]
        raise DataError(f"a valid Parquet file at {source}", found, "an undamaged copy of the file") from None
