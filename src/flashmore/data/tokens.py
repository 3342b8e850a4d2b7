"""Ids of a long text on disk, read through memory mapping: files larger than memory work.

The layout is that of nanoGPT's `.bin` files: one unsigned 16-bit number a token, little-endian, nothing else.
A store that flashmore wrote appears whole, and the run that it belongs to knows its SHA-256.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flashmore.data.text import PIECE_BYTES, read_text
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import DataError
from flashmore.files import (
    open_input,
    open_regular,
    replacing,
    write_all,
)

Ids = npt.NDArray[np.uint16]

DTYPE = np.dtype("<u2")
MOST_IDS = 2**16
"""Different ids that 16 bits can tell apart."""


@dataclass(frozen=True)
class TextFacts:
    """What one pass over a text finds."""

    vocabulary: Vocabulary
    """Its characters; the id of one in a store is its place here, from 0: a long text has no BOS."""
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


def scan_tokens(path: Path, count: int | None = None) -> tuple[int, int, str]:
    """Count the tokens of a `.bin` file, in pieces: (tokens, largest id, SHA-256 of the file).

    Args:
        path: the file.
        count: how many tokens to look at, and one more that must not be there; None means all.

    Raises:
        DataError: the file is missing, unreadable, empty, or no whole number of 16-bit ids.
    """
    wanted = f"16-bit ids in {path}"
    with open_input(path, wanted, "a .bin file of unsigned 16-bit ids", again=True) as file:
        return _scan(iter(lambda: file.read(PIECE_BYTES), b""), wanted, count)


def _scan(pieces: Iterable[bytes], wanted: str, count: int | None) -> tuple[int, int, str]:
    """As `scan_tokens`, of what a file holds; only the last piece may be an odd number of bytes."""
    digest, tokens, largest = hashlib.sha256(), 0, 0
    for data in pieces:
        if len(data) % DTYPE.itemsize:
            found = f"{tokens * DTYPE.itemsize + len(data):,} bytes, an odd number"
            raise DataError(wanted, found, "a .bin file of unsigned 16-bit ids, whole")
        digest.update(data)
        ids = np.frombuffer(data, DTYPE)
        tokens, largest = tokens + len(ids), max(largest, int(ids.max()))
        if count is not None and tokens > count:
            break
    return tokens, largest, digest.hexdigest()


def random_tokens(count: int, ids: int, seed: int) -> Iterator[Ids]:
    """Draw ids below `ids` evenly, `count` of them in pieces: enough to time training, nothing to learn."""
    generator = np.random.default_rng(seed)
    for start in range(0, count, PIECE_BYTES):
        yield generator.integers(ids, size=min(PIECE_BYTES, count - start), dtype=DTYPE)


def write_store(store: Path, pieces: Iterable[Ids]) -> str:
    """Write ids to a store, which appears when it is whole; returns its SHA-256.

    Raises:
        DataError: from `pieces`.
        OSError: the disk refused; what was at `store` is still there.
    """
    digest = hashlib.sha256()
    with replacing(store) as file:
        for ids in pieces:
            data = ids.astype(DTYPE).tobytes()
            write_all(file, data)
            digest.update(data)
    return digest.hexdigest()


def is_intact(store: Path, count: int, largest: int, sha256: str) -> bool:
    """Say whether a store holds the ids that it was written with; its size is looked at first.

    Args:
        store: the file.
        count: how many ids it must hold.
        largest: none of them may be above it.
        sha256: of the file.

    Raises:
        RunError: it is a link, a pipe, a device or a sparse file.
    """
    try:
        with open_regular(store) as file:
            if os.fstat(file.fileno()).st_size != count * DTYPE.itemsize:
                return False
            buffered = BufferedReader(file)  # which gives whole pieces
            pieces = iter(lambda: buffered.read(PIECE_BYTES), b"")
            tokens, highest, digest = _scan(pieces, f"{count:,} ids in {store}", count)
            return tokens == count and highest <= largest and digest == sha256
    except OSError:
        return False


def open_tokens(path: Path) -> Ids:
    """Map a file of 16-bit ids, read-only."""
    return np.memmap(path, dtype=DTYPE, mode="r")
