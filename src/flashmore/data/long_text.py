"""A run's long text: its source, its parts, and its ids on disk.

Ids are memory-mapped, so that files may be larger than memory. The layout is that of nanoGPT's `.bin` files:
one unsigned 16-bit number per token, little-endian, no header.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from flashmore.data.items import parse_shares
from flashmore.data.prepared import (
    DTYPE,
    MOST_IDS,
    Ids,
    is_absolute,
    points_of,
    read_prepared,
    require_few,
    storable,
)
from flashmore.data.text import PIECE_BYTES, read_text, require_encoding
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import ConfigError, DataError
from flashmore.files import open_input, open_regular, replacing, write_all

STORE = "tokens.bin"
"""Name of the token file in a run's folder."""
FEWEST_RANDOM = 2**18
REAL_GPT2_IDS = 50_257
"""GPT-2's vocabulary size; a model with 50,304 ids has 47 unused ones."""
MOST_BYTES = 32
"""Most bytes of a file per stored character: NFC composes up to four characters, a line ending up to two, and
UTF-7 needs up to eight bytes per character."""
_WHOLE = "a .bin file of unsigned 16-bit ids"


@dataclass(frozen=True)
class PartRanges:
    """Consecutive ranges [start, stop) of train, validation and test in a text."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]


@dataclass(frozen=True)
class LongText:
    """Metadata of a run's text, which may come from an untrusted folder.

    Raises:
        ValueError: parts that are not consecutive ranges of the text, a file for random ids, or a path that
            is not absolute.
        DataError: an encoding that is not used for files.
    """

    kind: Literal["characters", "tokens", "random"]
    """`characters` of a text file, stored in the run's folder, or of a prepared file, used in place; `tokens`
    of another `.bin` file, used in place; `random` ids, stored in the run's folder."""
    path: str | None
    """The file, as an absolute path; None for random ids."""
    encoding: str
    count: int
    """Number of ids, the largest of which is `largest`."""
    largest: int
    origin: str
    """SHA-256 of the text (as read, in UTF-8) or of the `.bin` file; a name for random ids."""
    parts: PartRanges
    store_sha256: str | None = None
    """SHA-256 of the token file in the run's folder; None before it is written, and for a `.bin` file."""
    order: str | None = None
    """The characters of a prepared file in the order of its ids, which is not that of the vocabulary."""

    def __post_init__(self) -> None:
        bounds = [bound for part in vars(self.parts).values() for bound in part]
        if bounds != sorted(bounds) or bounds[0] < 0 or bounds[-1] > self.count:
            raise ValueError(f"parts at {bounds} of {self.count} ids")
        if (self.path is None) != (self.kind == "random") or not 0 <= self.largest < MOST_IDS:
            raise ValueError(f"{self.kind} of {self.path} up to {self.largest}")
        if self.path is not None and not is_absolute(self.path):
            raise ValueError(f"{self.path}, which is not an absolute path")
        if self.order is not None and (
            self.kind != "characters" or not len(self.order) == len(set(self.order)) == self.largest + 1
        ):
            raise ValueError(f"{self.kind} in the order of {len(self.order)} up to {self.largest}")
        require_encoding(self.encoding)

    @property
    def in_place(self) -> bool:
        """Whether the ids are those of a `.bin` file, not of one in the run's folder."""
        return self.kind == "tokens" or self.order is not None

    @property
    def remap(self) -> Ids | None:
        """For each id on disk, the model's; None if they are the same."""
        if self.order is None:
            return None
        points = points_of(self.order)
        return np.searchsorted(np.sort(points), points).astype(DTYPE)

    def stored(self, folder: Path, vocabulary: Vocabulary) -> "LongText":
        """Write the ids into a run's folder, unless they are used in place.

        Raises:
            DataError: the text is missing or has changed.
            OSError: the token file could not be written.
        """
        if self.in_place:
            return self
        return replace(self, store_sha256=write_store(folder / STORE, self._make(vocabulary)))

    def ids(self, folder: Path, vocabulary: Vocabulary) -> Ids:
        """Map the ids as they are on disk: (count,) uint16; see `remap`.

        A missing or damaged token file in the run's folder is rebuilt.

        Raises:
            DataError: the text or the `.bin` file is needed, but missing or changed.
            OSError: the token file could not be written.
        """
        if self.in_place:
            return self._ids_in_place(folder)
        store = folder / STORE
        if not self.is_intact(store):
            self.stored(folder, vocabulary)
            if not self.is_intact(store):
                store.unlink()
                wanted = f"the text that {self.path or 'the generator of random ids'} held when the run began"
                found = "a different text, or another encoding"
                raise DataError(wanted, found, "the original text")
        return np.memmap(store, DTYPE, "r")

    def is_intact(self, store: Path) -> bool:
        """Whether the token file has the recorded size, which is checked first, SHA-256 and largest id."""
        try:
            with open_regular(store) as file:
                if os.fstat(file.fileno()).st_size != self.count * DTYPE.itemsize:
                    return False
                reader = BufferedReader(file)  # reads full pieces
                count, largest, sha256 = _scan(reader, f"{self.count:,} ids in {store}", self.count)
                return count == self.count and largest <= self.largest and sha256 == self.store_sha256
        except OSError:
            return False

    def _ids_in_place(self, folder: Path) -> Ids:
        path = Path(self.path or "")
        size = self._size(path)
        inside = path.resolve().parent == folder.resolve()  # such a file changes while the run trains
        if inside or size != DTYPE.itemsize * self.count:
            found = "a file in the run's folder" if inside else f"a file of {size:,} bytes"
            raise DataError(f"{self.count:,} tokens in {path}", found, "the original file")
        if scan_tokens(path, self.count) != (self.count, self.largest, self.origin):
            raise DataError(
                f"the tokens that {path} held when the run began", "different ones", "the original file"
            )
        return np.memmap(path, DTYPE, "r")

    def _make(self, vocabulary: Vocabulary) -> Iterator[Ids]:
        if self.kind == "random":
            return random_tokens(self.count, self.largest + 1)
        path = Path(self.path or "")
        size, most = self._size(path), MOST_BYTES * (self.count + 1)
        if size > most:  # an untrusted run may name any file of the user; do not read a large one in vain
            wanted = f"a text of {self.count:,} characters in {path}: at most {most:,} bytes"
            raise DataError(wanted, f"{size:,} bytes", "the text that it held when the run began")
        return encode_text(path, self.encoding, vocabulary, self.origin)

    def _size(self, path: Path) -> int:
        """Size in bytes of a file that the run names, which must be readable twice."""
        with open_input(path, f"what the run was trained on in {path}", again=True) as file:
            return os.fstat(file.fileno()).st_size


def read_long_text(
    file: Path | None, encoding: str, shares: str, context: int, vocabulary_size: int | None
) -> tuple[LongText, Vocabulary, int]:
    """Scan a text or a `.bin` file of 16-bit ids, or plan random ids, and split it into parts.

    The ids of a prepared file are not read; opening it checks them.

    Args:
        file: a text, or a name that ends in `.bin`, prepared or not; None for random ids.
        encoding: of a text.
        shares: percentages for train, validation and test, such as 80/10/10.
        context: T.
        vocabulary_size: for tokens and random ids; None means the largest id plus 1.

    Returns:
        The text, its characters (none for ids), and the vocabulary size V of a model.

    Raises:
        DataError: the file is missing, unreadable, empty, or not in the encoding; its size is not a multiple
            of 16 bits; ids beyond the vocabulary, or more than 65,536 distinct characters; a part with a
            share that is too short for one window; or a path that a run cannot store, as it is not UTF-8.
        ConfigError: invalid shares, or neither file nor vocabulary size.
    """
    vocabulary = Vocabulary(())
    path = None if file is None else storable(file)
    kind: Literal["characters", "tokens", "random"]
    order = None
    if file is None:
        if vocabulary_size is None:
            valid = "a text file, a .bin file of ids, or --vocab-size for random ids"
            raise ConfigError("a text with --mode text", "no FILE", valid)
        kind, size, source = "random", vocabulary_size, "the random ids"
        count, largest, origin = random_facts(context, vocabulary_size)
    elif file.suffix.lower() == ".bin" and (prepared := read_prepared(file)) is not None:
        if prepared.source.mode != "text":
            raise ConfigError("a text with --mode text", f"{file}, a prepared list", "--mode items")
        _require_no_size(vocabulary_size, file)
        kind, source, order = "characters", str(file), prepared.characters
        vocabulary, size = Vocabulary.from_items(order), len(order)
        count, largest, origin = prepared.count, size - 1, prepared.ids_sha256
    elif file.suffix.lower() == ".bin":
        kind, source = "tokens", str(file)
        count, largest, origin = scan_tokens(file)
        size = vocabulary_size or largest + 1
        if largest >= size:
            wanted = f"ids below --vocab-size {size:,} in {file}"
            raise DataError(wanted, f"the id {largest:,}", f"--vocab-size {largest + 1}")
    else:
        _require_no_size(vocabulary_size, file)
        kind, source = "characters", str(file)
        vocabulary, count, origin = scan_text(file, encoding)
        size = len(vocabulary.characters)
        largest = size - 1
    parts = cut_parts(count, shares, context, source)
    text = LongText(kind, path, encoding, count, largest, origin, parts, order=order)
    return text, vocabulary, size


def _require_no_size(vocabulary_size: int | None, file: Path) -> None:
    if vocabulary_size is not None:
        raise ConfigError(
            "--vocab-size with a .bin file of ids or with random ids",
            f"the text file {file}, whose characters are the vocabulary",
            "omit --vocab-size, and any preset that sets it",
        )


def cut_parts(count: int, shares: str, context: int, source: str) -> PartRanges:
    """Split a text of `count` ids by position; a part with a share must hold a window and the id after it."""
    train, validation, test = parse_shares(shares)
    first, second = int(count * train / 100), int(count * (train + validation) / 100)
    parts = PartRanges((0, first), (first, second), (second, count))
    sizes = {
        name: stop - start
        for (name, (start, stop)), share in zip(vars(parts).items(), (train, validation, test), strict=True)
        if share
    }
    short = ", ".join(f"{size:,} for {name}" for name, size in sizes.items() if size <= context)
    if short:
        longest = min(sizes.values()) - 1
        shorter = f"--block-size {longest} or less, " if longest >= 1 else ""
        raise DataError(
            f"at least {context + 1:,} characters in each part of {source}, for --block-size {context}",
            f"{count:,} in all: {short}",
            f"{shorter}a longer text, or a --split with fewer parts such as 90/10/0",
        )
    return parts


def random_facts(context: int, vocabulary_size: int) -> tuple[int, int, str]:
    """Count, largest id and origin of the random ids for a model with this context and vocabulary."""
    count = max(FEWEST_RANDOM, 100 * (context + 1))
    ids = min(vocabulary_size, REAL_GPT2_IDS)
    return count, ids - 1, f"random {ids} {count}"


def random_tokens(count: int, ids: int) -> Iterator[Ids]:
    """Draw `count` ids uniformly from [0, ids), in pieces: enough to time training, nothing to learn."""
    generator = np.random.default_rng(0)
    for start in range(0, count, PIECE_BYTES):
        yield generator.integers(ids, size=min(PIECE_BYTES, count - start), dtype=DTYPE)


def scan_text(path: Path, encoding: str) -> tuple[Vocabulary, int, str]:
    """A text's characters, their number in it, and the SHA-256 of the text as read, in UTF-8."""
    seen = np.zeros(sys.maxunicode + 1, dtype=np.bool_)
    digest, count = hashlib.sha256(), 0
    for piece in read_text(path, encoding):
        seen[points_of(piece)] = True
        digest.update(piece.encode())
        count += len(piece)
    points = seen.nonzero()[0].tolist()
    require_few(len(points), path)
    return Vocabulary(tuple(map(chr, points))), count, digest.hexdigest()


def encode_text(path: Path, encoding: str, vocabulary: Vocabulary, sha256: str) -> Iterator[Ids]:
    """Read a text with this SHA-256 again, as pieces of ids that start at 0: a long text has no BOS."""
    digest = hashlib.sha256()
    table = np.zeros(sys.maxunicode + 1, dtype=DTYPE)
    table[vocabulary.points] = np.arange(len(vocabulary.points))
    for piece in read_text(path, encoding):
        digest.update(piece.encode())
        yield table[points_of(piece)]
    if digest.hexdigest() != sha256:
        raise DataError(
            f"the text that {path} held when the run began", "a different text", "the original text"
        )


def scan_tokens(path: Path, count: int | None = None) -> tuple[int, int, str]:
    """Count the tokens of a `.bin` file, at most one more than `count`: (tokens, largest id, SHA-256)."""
    wanted = f"16-bit ids in {path}"
    with open_input(path, wanted, _WHOLE, again=True) as file:
        return _scan(file, wanted, count)


def _scan(file: BinaryIO | BufferedReader, wanted: str, count: int | None) -> tuple[int, int, str]:
    digest, tokens, largest = hashlib.sha256(), 0, 0
    while data := file.read(PIECE_BYTES):  # only the last piece may have an odd number of bytes
        if len(data) % DTYPE.itemsize:
            found = f"{tokens * DTYPE.itemsize + len(data):,} bytes, an odd number"
            raise DataError(wanted, found, f"{_WHOLE}, whole")
        digest.update(data)
        ids = np.frombuffer(data, DTYPE)
        tokens, largest = tokens + len(ids), max(largest, int(ids.max()))
        if count is not None and tokens > count:
            break
    return tokens, largest, digest.hexdigest()


def write_store(store: Path, pieces: Iterable[Ids]) -> str:
    """Write ids to a token file atomically; returns its SHA-256."""
    digest = hashlib.sha256()
    with replacing(store) as file:
        for ids in pieces:
            data = ids.astype(DTYPE).tobytes()
            write_all(file, data)
            digest.update(data)
    return digest.hexdigest()
