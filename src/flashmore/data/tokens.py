"""Ids of a long text on disk, read through memory mapping: files larger than memory work.

The layout is that of nanoGPT's `.bin` files: one unsigned 16-bit number a token, little-endian, nothing else.
A store that flashmore wrote has a JSON header beside it, NAME.json, with `format`, `dtype`, `count`, the
SHA-256 of the file and that of what it was made from. Without its header a store was not finished.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flashmore.data.text import PIECE_BYTES, read_text
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import DataError

Ids = npt.NDArray[np.uint16]

FORMAT = 1
DTYPE = np.dtype("<u2")
MOST_IDS = 2**16
"""Different ids that 16 bits can tell apart."""


@dataclass(frozen=True)
class TextFacts:
    """What one pass over a text finds."""

    vocabulary: Vocabulary
    """Its characters; the id of one in a store is its place here, from 0: a long text has no START."""
    count: int
    """Characters."""
    sha256: str
    """Of the text as it was read, in UTF-8."""


def scan_text(path: Path, encoding: str) -> TextFacts:
    """Count a text's characters, in pieces.

    Raises:
        DataError: as `read_text` does, or more than 65,536 different characters.
    """
    characters: set[str] = set()
    digest, count = hashlib.sha256(), 0
    for piece in read_text(path, encoding):
        characters.update(piece)
        digest.update(piece.encode())
        count += len(piece)
    if len(characters) > MOST_IDS:
        found = f"{len(characters):,} different ones"
        raise DataError(
            f"at most {MOST_IDS:,} different characters in {path}", found, "text in fewer scripts"
        )
    return TextFacts(Vocabulary(tuple(sorted(characters))), count, digest.hexdigest())


def encode_text(path: Path, encoding: str, vocabulary: Vocabulary, sha256: str) -> Iterator[Ids]:
    """Read a text again, as ids from 0: pieces of uint16.

    Raises:
        DataError: as `read_text` does, or the text is no longer the one with this SHA-256.
    """
    known = np.array([*map(ord, vocabulary.characters)], dtype=np.uint32)
    digest = hashlib.sha256()
    for piece in read_text(path, encoding):
        digest.update(piece.encode())
        points = np.frombuffer(piece.encode("utf-32-le"), dtype="<u4")
        yield np.searchsorted(known, points).astype(DTYPE)
    if digest.hexdigest() != sha256:
        raise DataError(f"the text that {path} held when the run began", "another one", "that text again")


def scan_tokens(path: Path) -> tuple[int, int, str]:
    """Count the tokens of a `.bin` file, in pieces: (tokens, largest id, SHA-256 of the file).

    Raises:
        DataError: the file is missing, unreadable, empty, or no whole number of 16-bit ids.
    """
    digest, tokens, largest = hashlib.sha256(), 0, 0
    for data in _read_pieces(path):
        if len(data) % DTYPE.itemsize:
            found = f"{tokens * DTYPE.itemsize + len(data):,} bytes, an odd number"
            raise DataError(f"16-bit ids in {path}", found, "a .bin file of unsigned 16-bit ids, whole")
        digest.update(data)
        ids = np.frombuffer(data, DTYPE)
        tokens, largest = tokens + len(ids), max(largest, int(ids.max()))
    if not tokens:
        raise DataError(f"16-bit ids in {path}", "an empty file", "a .bin file of unsigned 16-bit ids")
    return tokens, largest, digest.hexdigest()


def random_tokens(count: int, ids: int, seed: int) -> Iterator[Ids]:
    """Draw ids below `ids` evenly, `count` of them in pieces: enough to time training, nothing to learn."""
    generator = np.random.default_rng(seed)
    for start in range(0, count, PIECE_BYTES):
        yield generator.integers(ids, size=min(PIECE_BYTES, count - start), dtype=DTYPE)


def obtain(store: Path, origin: str, make: Callable[[], Iterable[Ids]]) -> Ids:
    """Map a store that flashmore keeps; make it where it is missing, damaged, or of another text.

    Args:
        store: the `.bin` file.
        origin: SHA-256, or another name, of what the ids are made from.
        make: gives the ids in pieces.

    Raises:
        DataError: from `make`.
        OSError: the disk refused; nothing half-written is left.
    """
    if not _is_intact(store, origin):
        _write(store, origin, make())
    return open_tokens(store)


def open_tokens(path: Path) -> Ids:
    """Map a file of 16-bit ids, read-only."""
    return np.memmap(path, dtype=DTYPE, mode="r")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces.

    Raises:
        DataError: the file is missing or unreadable.
    """
    digest = hashlib.sha256()
    for data in _read_pieces(path):
        digest.update(data)
    return digest.hexdigest()


def _is_intact(store: Path, origin: str) -> bool:
    try:
        header = json.loads(_header(store).read_bytes())
        about = (header["format"], header["dtype"], header["origin"])
        return about == (FORMAT, DTYPE.str, origin) and header["sha256"] == digest_of(store)
    except (OSError, ValueError, LookupError, TypeError, DataError):
        return False


def _write(store: Path, origin: str, pieces: Iterable[Ids]) -> None:
    """Write the store, then its header, each under another name until it is whole."""
    new, new_header = (path.with_name(path.name + ".new") for path in (store, _header(store)))
    digest, written = hashlib.sha256(), 0
    try:
        # First of all: a new file must never be met with an old header.
        _header(store).unlink(missing_ok=True)
        with new.open("wb") as file:
            for ids in pieces:
                data = ids.astype(DTYPE).tobytes()
                file.write(data)
                digest.update(data)
                written += len(ids)
            file.flush()
            os.fsync(file.fileno())
        header = {"format": FORMAT, "dtype": DTYPE.str, "count": written, "origin": origin}
        new_header.write_text(json.dumps(header | {"sha256": digest.hexdigest()}, indent=2) + "\n", "utf-8")
        new.replace(store)
        new_header.replace(_header(store))
    except BaseException:
        for path in (new, new_header):
            with suppress(OSError):
                path.unlink()
        raise


def _header(store: Path) -> Path:
    return store.with_suffix(".json")


def _read_pieces(path: Path) -> Iterator[bytes]:
    try:
        if path.is_dir():
            raise DataError(f"a file at {path}", "a folder", "the path of a file that you may read")
        with path.open("rb") as file:
            while data := file.read(PIECE_BYTES):
                yield data
    except OSError as error:
        found = error.strerror or str(error)
        raise DataError(f"a file at {path}", found, "the path of a file that you may read") from None
