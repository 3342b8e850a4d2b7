"""Items of a prepared list: on disk, found by position, and split by a hash of their characters.

Tens of millions of items fit in memory as numbers, not as Python strings. N items of a part, S ids.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flashmore.data.items import MAX_LENGTH, parse_shares
from flashmore.data.long_text import scan_tokens
from flashmore.data.prepared import DTYPE, MOST_IDS, Ids, is_absolute, points_of, read_prepared, storable
from flashmore.data.vocabulary import EOS, Vocabulary
from flashmore.errors import ConfigError, DataError

EVALUATED = 2**17
"""Most items of a part that an evaluation takes, a fixed random sample, which bounds its time."""
_AT_ONCE = 2**18
"""Items hashed together, and 2**6 times as many ids read together."""


@dataclass(frozen=True)
class Rows:
    """The items of one part: where they are among the ids."""

    starts: npt.NDArray[np.int64]
    """(N,)"""
    lengths: npt.NDArray[np.int16]
    """(N,): characters, without EOS."""


@dataclass(frozen=True)
class StoredItems:
    """Metadata of a run's prepared list, which may come from an untrusted folder.

    Raises:
        ValueError: a path that is not absolute, or no distinct characters that begin with a line feed.
        ConfigError: shares that are none.
    """

    path: str
    """The `.bin` file, as an absolute path."""
    count: int
    """Number of ids."""
    order: str
    """The characters in the order of the ids, the line feed that ends each item first."""
    ids_sha256: str
    shares: str
    """Percentages of train, validation and test."""
    seed: int
    """Of the split."""

    def __post_init__(self) -> None:
        if not is_absolute(self.path):
            raise ValueError(f"{self.path}, which is not an absolute path")
        distinct = len(set(self.order)) == len(self.order)
        if not distinct or self.order[:1] != "\n" or not 2 <= len(self.order) <= MOST_IDS or self.seed < 0:
            raise ValueError(f"{len(self.order)} characters that are no list's, or the seed {self.seed}")
        parse_shares(self.shares)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The characters of the items."""
        return Vocabulary.from_items(self.order[1:])

    @property
    def remap(self) -> Ids:
        """For each id on disk, the model's."""
        found = np.searchsorted(self.vocabulary.points, points_of(self.order)) + 1
        found[0] = EOS
        return found.astype(DTYPE)

    def ids(self) -> Ids:
        """Map the ids: (count,) uint16; a DataError if the file is missing or has changed."""
        path = Path(self.path)
        if scan_tokens(path, self.count) != (self.count, len(self.order) - 1, self.ids_sha256):
            wanted = f"the items that {path} held when it was prepared"
            raise DataError(wanted, "different ones", "the original file")
        return np.asarray(np.memmap(path, DTYPE, "r"))

    def open(self) -> "OpenItems":
        """Map the ids, and split the items.

        An item's part depends on its characters, the shares and the seed, not on the other items. Of equal
        items one is kept.

        Raises:
            DataError: the file is missing or changed, or a part with a share is empty.
        """
        ids = self.ids()
        starts, lengths = _rows(ids, f"items of 1 to {MAX_LENGTH} characters in {self.path}")
        hashes = self._hashes(ids, starts, lengths)
        order = hashes.argsort()
        hashes = hashes[order]
        different = np.concatenate(([True], hashes[1:] != hashes[:-1]))
        order = order[different]  # one after another, because each takes hundreds of megabytes
        hashes = hashes[different]
        train, validation, test = parse_shares(self.shares)
        cuts = [min(int(share * 2**64 / 100), 2**64 - 1) for share in (train, train + validation)]
        indices = np.split(order, np.searchsorted(hashes, np.array(cuts, dtype=np.uint64)))
        if any(
            share and not len(part) for share, part in zip((train, validation, test), indices, strict=True)
        ):
            found = ", ".join(f"{len(part):,}" for part in indices)
            valid = "more items, or --split 100/0/0, which holds out nothing"
            raise DataError(f"items for each part of the split {self.shares}", found, valid)
        parts = (Rows(starts[part], lengths[part]) for part in indices)
        return OpenItems(ids, int(lengths.max()), *parts)

    def _hashes(
        self, ids: Ids, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int16]
    ) -> npt.NDArray[np.uint64]:
        """A 64-bit hash of each item: multilinear in its characters, with random keys for the positions."""
        keys = np.random.default_rng(self.seed).integers(2**64, size=MAX_LENGTH + 1, dtype=np.uint64)
        keys |= np.uint64(1)
        points = _mixed(points_of(self.order).astype(np.uint64))
        hashes = np.empty(len(starts), dtype=np.uint64)
        for first in range(0, len(starts), _AT_ONCE):
            rows = slice(first, first + _AT_ONCE)
            sizes = lengths[rows].astype(np.int64) + 1  # with EOS
            begins = np.cumsum(sizes) - sizes
            characters = ids[starts[first] : starts[first] + sizes.sum()]
            places = np.arange(len(characters)) - np.repeat(begins, sizes)
            hashes[rows] = np.add.reduceat(points[characters] * keys[places], begins)
        return _mixed(hashes)


@dataclass(frozen=True)
class OpenItems:
    """The ids of a prepared list, and its parts, each in the order of the hashes: a random one."""

    ids: Ids
    """(S,), memory-mapped; see `StoredItems.remap`."""
    longest: int
    """Most characters of an item."""
    train: Rows
    validation: Rows
    test: Rows


def read_stored_items(file: Path, shares: str, seed: int) -> StoredItems | None:
    """The metadata of a prepared list; None for another file.

    Raises:
        DataError: its description is damaged.
        ConfigError: it is a prepared text; invalid shares, those of makemore, or a negative seed.
    """
    prepared = read_prepared(file)
    if prepared is None:
        return None
    if prepared.source.mode != "items":
        raise ConfigError("a list with --mode items", f"{file}, a prepared text", "--mode text")
    parse_shares(shares)
    if seed < 0:
        raise ConfigError("a seed for the split", str(seed), "a whole number of at least 0")
    return StoredItems(storable(file), prepared.count, prepared.characters, prepared.ids_sha256, shares, seed)


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Splitmix64's finalizer (Steele, Lea and Flood 2014): close numbers become unrelated ones."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _rows(ids: Ids, wanted: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int16]]:
    """Start and length of each item, one after another; a DataError for lengths that items do not have."""
    step = 64 * _AT_ONCE
    ends = np.concatenate(
        [np.flatnonzero(ids[first : first + step] == EOS) + first for first in range(0, len(ids), step)]
    )
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts
    if ids[-1] != EOS or not 1 <= lengths.min() <= lengths.max() <= MAX_LENGTH:
        raise DataError(wanted, "others, or no end of the last one", "a list made by `flashmore prepare`")
    return starts, lengths.astype(np.int16)
