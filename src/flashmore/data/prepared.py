"""A text or a list prepared as ids on disk, in one pass that a killed process can continue.

`prepare` reads a text in pieces and writes a `.bin` file of 16-bit ids, in the layout of nanoGPT's, and
beside it a description in JSON. Which characters a text has is only known at its end, so ids are given in the
order of first appearance.

A list is a text of its items, cleaned, each with a line feed after it, whose id is 0: it serves as EOS.
"""

import hashlib
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from flashmore.data.items import MAX_LENGTH
from flashmore.data.text import NOT_TEXT, PIECE_BYTES, START, Place, read_pieces, require_encoding
from flashmore.errors import ConfigError, DataError, RunError
from flashmore.files import (
    disk_errors,
    is_temporary,
    open_input,
    open_regular,
    replace_file,
    sync_folder,
    write_all,
)

Ids = npt.NDArray[np.uint16]
Mode = Literal["items", "text"]
DTYPE = np.dtype("<u2")
MOST_IDS = 2**16
FORMAT = 1
"""Version of the description, increased with every change that an older flashmore cannot read."""
SAVED_IDS = 2**27
"""Ids between two saved states, 256 MiB on disk: at most so many are lost when the process is killed."""
_LARGEST_JSON = 2**21
_AHEAD = 16
"""Pieces that wait to be written; writing and hashing release the GIL, so they run beside the decoder."""
_IDS, _STATE, _LOCK = "ids.bin", "state.json", "lock"
_END = "\n"
"""Follows each item of a list."""


class Source(msgspec.Struct, frozen=True):
    """A text and how it is read, by what tells that it changed; its content is not compared."""

    path: str
    encoding: str
    mode: Mode
    size: int
    """In bytes."""
    modified_ns: int
    """Time of the last change, in nanoseconds since 1970."""


class Prepared(msgspec.Struct, frozen=True):
    """The description of a prepared text, in NAME.bin.json."""

    format: int
    characters: str
    """In the order of their ids, which is that of their first appearance."""
    count: int
    """Number of ids."""
    ids_sha256: str
    """SHA-256 of the `.bin` file."""
    source: Source


class _State(msgspec.Struct, frozen=True):
    """How far an unfinished preparation has come."""

    source: Source
    place: Place
    line: str
    """The last line before it, which has not ended."""
    characters: str
    count: int
    ids_sha256: str
    """SHA-256 of the first `count` ids."""


_Sealed = TypeVar("_Sealed", Prepared, _State)


def beside(path: Path) -> Path:
    """Where the description of a `.bin` file is."""
    return path.with_name(path.name + ".json")


def read_prepared(path: Path) -> Prepared | None:
    """Read the description of a `.bin` file; None for a file without one. The ids are not read.

    Raises:
        DataError: the description is damaged, or of a file of another size.
    """
    if (prepared := _read_description(path)) is None:
        return None
    with open_input(path, f"{prepared.count:,} ids in {path}", again=True) as file:
        size = os.fstat(file.fileno()).st_size
    if size != DTYPE.itemsize * prepared.count:
        raise DataError(f"{prepared.count:,} ids in {path}", f"a file of {size:,} bytes", _anew(path))
    return prepared


def _read_description(path: Path) -> Prepared | None:
    """As `read_prepared`, whether or not the `.bin` file is there."""
    if not os.path.lexists(beside(path)):
        return None
    wanted = f"the description of {path} that `flashmore prepare` wrote to {beside(path).name}"
    valid = _anew(path)
    with open_input(beside(path), wanted, valid) as file:
        data = file.read(_LARGEST_JSON)
    try:
        prepared = _unsealed(data, Prepared)
    except ValueError as error:
        raise DataError(wanted, f"truncated or altered: {error}", valid) from None
    characters, found = prepared.characters, None
    if prepared.format != FORMAT:
        found = f"format {prepared.format}, which this version of flashmore does not support"
    elif not 1 <= len(set(characters)) == len(characters) <= MOST_IDS or NOT_TEXT.search(characters):
        found = f"{len(characters):,} characters that are no vocabulary of a text"
    elif prepared.source.mode == "items" and characters[:1] != _END:
        found = "a list without line feeds"
    if found is not None:
        raise DataError(wanted, found, valid)
    return prepared


def _anew(path: Path) -> str:
    return f"remove both and prepare the text again; or remove {beside(path)} to use ids without characters"


def prepare(
    file: Path, out: Path, encoding: str, mode: Mode, reached: Callable[[int, int], None]
) -> Prepared:
    """Write the ids of a text or a list to `out` and their description beside it, in one pass.

    A killed or interrupted call leaves a folder `out`.part, from which the same call continues. Repeating a
    finished call does nothing.

    Args:
        out: the `.bin` file to write.
        mode: `text`, or `items`: a list with one item per line.
        reached: called with the bytes of the text that are done, and all of them.

    Raises:
        DataError: not a text in this encoding, too many different characters, no item or too long a one, or
            the text changed while it was read; nothing is left of the preparation. Or a damaged description.
        RunError: the text has changed since the preparation began, or what was written is damaged.
        ConfigError: `out` or its description exists and is of something else; another process prepares it.
        StorageError: a disk operation failed; the same call continues.
    """
    require_encoding(encoding)
    with open_input(file, f"a text file at {file}", again=True) as opened:
        status = os.fstat(opened.fileno())
    source = Source(storable(file), encoding, mode, status.st_size, status.st_mtime_ns)
    folder = out.with_name(out.name + ".part")
    with disk_errors(f"to prepare {out}", out), _exclusive(folder):
        state = _read_state(folder, source)
        is_done = os.path.lexists(out)
        prepared = read_prepared(out) if is_done else _read_description(out)
        if (is_done and prepared is None) or (prepared is not None and prepared.source != source):
            exists = out if is_done else beside(out)
            valid = f"another --out, or remove {exists}"
            raise ConfigError("a new file for --out", f"{exists} exists", valid)
        if prepared is None or not is_done:  # a description without ids is of a call killed before its end
            try:
                prepared = _write(folder, state, source, reached)
            except DataError:  # what was written can never be continued
                _clear(folder)
                raise
            replace_file(beside(out), _sealed(prepared))
            (folder / _IDS).rename(out)
            sync_folder(out.parent)
        _clear(folder)
    return prepared


def storable(file: Path) -> str:
    """The absolute path of a file as JSON can store it; a DataError if it is not UTF-8."""
    path = str(file.absolute())
    if any("\ud800" <= character <= "\udfff" for character in path):
        wanted = "a path in UTF-8, so that it can be stored"
        raise DataError(wanted, ascii(path), "a copy of the text at a path in UTF-8")
    return path


def is_absolute(path: str) -> bool:
    """Whether this is an absolute path here or on the system that a run came from."""
    return any(system(path).is_absolute() for system in (PurePosixPath, PureWindowsPath))


def points_of(text: str) -> npt.NDArray[Any]:
    """The code points of a text: (len(text),) uint8 if it is ASCII, else uint32."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def require_few(characters: int, path: Path | str) -> None:
    """Refuse more than `MOST_IDS` different characters with a DataError."""
    if characters > MOST_IDS:
        wanted = f"at most {MOST_IDS:,} different characters in {path}"
        raise DataError(wanted, f"{characters:,}", "text in fewer scripts")


class Encoder:
    """Encodes a text in pieces; each new character gets the next id.

    Args:
        characters: those that have ids already.
        path: of the text, for errors.
    """

    def __init__(self, characters: str, path: str) -> None:
        self.characters, self._path = characters, path
        self._ids = np.full(sys.maxunicode + 1, -1, dtype=np.int32)
        self._ids[points_of(characters)] = np.arange(len(characters))

    def encode(self, text: str) -> Ids:
        """The ids of the next piece; a DataError for too many different characters."""
        if not text:
            return np.empty(0, dtype=DTYPE)
        points = points_of(text)
        ids: npt.NDArray[np.int32] = self._ids[points]
        if ids.min() < 0:
            fresh, first = np.unique(points[ids < 0], return_index=True)
            self.characters += "".join(map(chr, fresh[first.argsort()].tolist()))
            require_few(len(self.characters), self._path)
            self._ids[points_of(self.characters)] = np.arange(len(self.characters))
            ids = self._ids[points]
        return ids.astype(DTYPE)


class _Store:
    """The ids that were written so far; its methods are called by one thread."""

    def __init__(self, folder: Path, file: FileIO, source: Source) -> None:
        self._folder, self._file, self._source = folder, file, source
        self._digest, self.count, self._saved = hashlib.sha256(), 0, 0

    def restore(self, state: _State) -> None:
        """Check what a killed process had saved, and drop what it wrote after that."""
        left = state.count * DTYPE.itemsize
        while left and (data := self._file.read(min(left, PIECE_BYTES))):
            self._digest.update(data)
            left -= len(data)
        if self.sha256 != state.ids_sha256:
            raise _unusable(self._folder, "other bytes than it wrote", f"{state.count:,} ids")
        self.count = self._saved = state.count
        self._file.truncate(state.count * DTYPE.itemsize)

    def write(self, ids: Ids, place: Place, line: str, characters: str) -> int:
        """Append ids; from time to time, save that the text was read to `place`, with these characters."""
        data = ids.tobytes()
        write_all(self._file, data)
        self._digest.update(data)
        self.count += len(ids)
        if self.count - self._saved >= SAVED_IDS:
            self.sync()
            state = _State(self._source, place, line, characters, self.count, self.sha256)
            replace_file(self._folder / _STATE, _sealed(state))
            self._saved = self.count
        return place.offset

    def sync(self) -> None:
        """Flush the ids to disk."""
        os.fsync(self._file.fileno())

    @property
    def sha256(self) -> str:
        """SHA-256 of the ids."""
        return self._digest.hexdigest()


def _write(
    folder: Path, state: _State | None, source: Source, reached: Callable[[int, int], None]
) -> Prepared:
    with open_regular(folder / _IDS, os.O_RDWR | os.O_CREAT) as file:
        store = _Store(folder, file, source)
        is_list = source.mode == "items"
        encoder, place, line = Encoder(_END if is_list else "", source.path), START, ""
        if state is None:
            file.truncate(0)
        else:
            store.restore(state)
            encoder, place, line = Encoder(state.characters, source.path), state.place, state.line
        pieces = read_pieces(Path(source.path), source.encoding, place)
        waiting: deque[Future[int]] = deque()
        with ThreadPoolExecutor(1) as thread:
            for piece, after, rest in _lines(pieces, line, source.path) if is_list else _whole(pieces):
                ids = encoder.encode(piece)
                waiting.append(thread.submit(store.write, ids, after, rest, encoder.characters))
                if len(waiting) > _AHEAD:
                    reached(waiting.popleft().result(), source.size)
            for future in waiting:
                reached(future.result(), source.size)
        if not store.count:
            valid = "a text file with one item per line"
            raise DataError(f"at least one item in {source.path}", "only blank lines", valid)
        store.sync()
        status = Path(source.path).stat()
        if (status.st_size, status.st_mtime_ns) != (source.size, source.modified_ns):
            wanted = f"a text in {source.path} that stays as it is"
            raise DataError(wanted, "it changed while it was read", "the same command again")
        return Prepared(FORMAT, encoder.characters, store.count, store.sha256, source)


def _whole(pieces: Iterator[tuple[str, Place]]) -> Iterator[tuple[str, Place, str]]:
    return ((piece, place, "") for piece, place in pieces)


def _lines(pieces: Iterator[tuple[str, Place]], line: str, source: str) -> Iterator[tuple[str, Place, str]]:
    """The items that end in each piece, each with `_END`, and the line that does not; it begins as `line`."""

    def cleaned(lines: list[str]) -> str:
        items = [*filter(None, map(str.strip, lines))]
        if items and max(map(len, items)) > MAX_LENGTH:
            item = max(items, key=len)
            wanted = f"items of at most {MAX_LENGTH:,} characters in {source}"
            found = f"a longer one that begins with {item[:40]!r}"
            raise DataError(wanted, found, f"one item per line, each of 1 to {MAX_LENGTH:,} characters")
        return "".join(item + _END for item in items)

    place = START
    for piece, place in pieces:
        *whole, line = (line + piece).split(_END)
        cleaned([line])  # a line without an end is not kept for ever
        line = line.lstrip()[: MAX_LENGTH + 1]  # the rest is spaces
        yield cleaned(whole), place, line
    yield cleaned([line]), place, ""


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes from the same preparation; without anything to continue, remove the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        found = f"another process that writes to {folder}"
        raise ConfigError("a preparation in one process", found, "wait until it has ended") from None
    try:
        yield
    finally:
        lock.release()
        if folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {_LOCK}:
            shutil.rmtree(folder)


def _clear(folder: Path) -> None:
    """Remove what an unfinished preparation wrote, the state first: ids without one are not continued."""
    for name in (_STATE, _IDS):
        with suppress(FileNotFoundError):
            (folder / name).unlink()
    for entry in folder.iterdir():
        if is_temporary(entry.name):
            entry.unlink()


def _read_state(folder: Path, source: Source) -> _State | None:
    names = {entry.name for entry in folder.iterdir() if not is_temporary(entry.name)}
    if foreign := sorted(names - {_IDS, _STATE, _LOCK}):
        raise _unusable(folder, f"a folder that contains {foreign[0]}")
    if _STATE not in names:
        return None
    with open_input(folder / _STATE, f"the state of a preparation in {folder}") as file:
        data = file.read(_LARGEST_JSON)
    try:
        state = _unsealed(data, _State)
    except ValueError as error:
        raise _unusable(folder, f"{_STATE}, truncated or altered: {error}") from None
    if state.source != source:
        was = state.source
        found = f"that of {was.path} in {was.encoding}, with {was.size:,} bytes, and it changed since"
        raise _unusable(folder, found)
    return state


def _unusable(folder: Path, found: str, of: str = "an unfinished preparation of this text") -> RunError:
    return RunError(f"{of} in {folder}", found, f"remove {folder} to begin anew, or another --out")


def _sealed(content: Prepared | _State) -> bytes:
    """JSON with the SHA-256 of its other content."""
    plain = msgspec.to_builtins(content)
    seal = hashlib.sha256(msgspec.json.encode(plain)).hexdigest()
    return msgspec.json.format(msgspec.json.encode({**plain, "sha256": seal})) + b"\n"


def _unsealed(data: bytes, kind: type[_Sealed]) -> _Sealed:
    """The content of such JSON; a ValueError unless it is byte for byte what `_sealed` makes of it."""
    try:
        content = msgspec.json.decode(data, type=kind)
    except RecursionError as error:  # in a value that is of no field
        raise ValueError(error) from None
    if _sealed(content) != data:
        raise ValueError("it does not match its checksum")
    return content
