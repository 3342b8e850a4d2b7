"""Ids of a long text on disk, memory-mapped, so that files may be larger than memory.

The layout is that of nanoGPT's `.bin` files: one unsigned 16-bit number per token, little-endian, no header.
Token files are written atomically, and the run stores their SHA-256.
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
"""Number of 16-bit ids."""


@dataclass(frozen=True)
class TextFacts:
    """The result of scanning a text."""

    vocabulary: Vocabulary
    """Its characters; a character's id is its index, from 0: a long text has no BOS."""
    count: int
    """Number of characters."""
    sha256: str
    """Of the text as read, in UTF-8."""


def scan_text(path: Path, encoding: str) -> TextFacts:
    """Count a text's characters, in pieces.

    Raises:
        DataError: as `read_text`, or more than 65,536 distinct characters.
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
    """Read a text again, as pieces of uint16 ids that start at 0.

    Raises:
        DataError: as `read_text`, or the text no longer has this SHA-256.
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
        count: the expected number of tokens, where reading stops after one more; None means all.

    Raises:
        DataError: the file is missing, unreadable or empty, or its size is not a multiple of 16 bits.
    """
    wanted = f"16-bit ids in {path}"
    with open_input(path, wanted, "a .bin file of unsigned 16-bit ids", again=True) as file:
        return _scan(iter(lambda: file.read(PIECE_BYTES), b""), wanted, count)


def _scan(pieces: Iterable[bytes], wanted: str, count: int | None) -> tuple[int, int, str]:
    """As `scan_tokens`, for a file's content; only the last piece may have an odd number of bytes."""
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
    """Draw `count` ids uniformly from [0, ids), in pieces: enough to time training, nothing to learn."""
    generator = np.random.default_rng(seed)
    for start in range(0, count, PIECE_BYTES):
        yield generator.integers(ids, size=min(PIECE_BYTES, count - start), dtype=DTYPE)


def write_store(store: Path, pieces: Iterable[Ids]) -> str:
    """Write ids to a token file atomically; returns its SHA-256.

    Raises:
        DataError: from `pieces`.
        OSError: writing failed; a previous file at `store` is kept.
    """
    digest = hashlib.sha256()
    with replacing(store) as file:
        for ids in pieces:
            data = ids.astype(DTYPE).tobytes()
            write_all(file, data)
            digest.update(data)
    return digest.hexdigest()


def is_intact(store: Path, count: int, largest: int, sha256: str) -> bool:
    """Whether a token file is unchanged; its size is checked first.

    Args:
        store: the file.
        count: expected number of ids.
        largest: largest allowed id.
        sha256: expected SHA-256 of the file.

    Raises:
        RunError: it is a link, a pipe, a device or a sparse file.
    """
    try:
        with open_regular(store) as file:
            if os.fstat(file.fileno()).st_size != count * DTYPE.itemsize:
                return False
            buffered = BufferedReader(file)  # reads full pieces
            pieces = iter(lambda: buffered.read(PIECE_BYTES), b"")
            tokens, highest, digest = _scan(pieces, f"{count:,} ids in {store}", count)
            return tokens == count and highest <= largest and digest == sha256
    except OSError:
        return False


def open_tokens(path: Path) -> Ids:
    """Map a file of 16-bit ids, read-only."""
    return np.memmap(path, dtype=DTYPE, mode="r")
