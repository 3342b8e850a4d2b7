"""What a list of items holds, and what in it may be unintended; `flashmore look` shows it."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flashmore.data.items import Split, Words, effective

FAR = 10
"""An item of more than this many times the median length is far longer than the others."""
EXAMPLES = 3
LONGEST = 40
"""Most characters of an item that is shown."""
_ALPHABETS = ("LATIN ", "GREEK ", "CYRILLIC ", "ARMENIAN ", "COPTIC ", "CHEROKEE ")
"""Scripts with letters that look the same, by the names of their letters."""
_JOINERS = "\u200c\u200d"
"""Invisible, but part of the spelling in several scripts."""


@dataclass(frozen=True)
class Finding:
    """Something in the items that may be unintended."""

    what: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class WeightRange:
    """The weights of the items."""

    least: float
    most: float
    total: float
    effective: float
    """Number of items of equal weight whose mean is as exact."""


@dataclass(frozen=True)
class Overview:
    """Counts, lengths, characters and findings."""

    source: str
    lines: int
    """Number of items with duplicates."""
    items: int
    """Without."""
    parts: dict[str, int]
    """Number of items in each part of the split."""
    lengths: dict[int, int]
    """Number of items (without duplicates) of each length in characters, in ascending order."""
    characters: dict[str, int]
    """How often each character occurs in them, the most frequent first."""
    examples: tuple[str, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    weights: WeightRange | None = None
    """None if every item counts once."""

    def length(self, share: float) -> int:
        """The smallest length that this share of the items does not exceed."""
        up_to = np.cumsum([*self.lengths.values()])
        return [*self.lengths][int(np.searchsorted(up_to, share * self.items))]


def overview(words: Words, split: Split) -> Overview:
    """Examine items and their split."""
    parts = {name: len(getattr(split, name)) for name in ("train", "validation", "test")}
    lengths, characters = _lengths(words), _characters(words)
    counts = (len(words.lines), len(words.items))
    examples = split.train[:EXAMPLES]  # in random order
    weights = None
    if (given := words.weights) is not None:
        weights = WeightRange(min(given), max(given), sum(given), effective(given))
    found = findings(words, split)
    return Overview(words.source, *counts, parts, lengths, characters, examples, found, words.notes, weights)


def shortened(items: Sequence[str]) -> str:
    """Items side by side, each in quotes and of at most `LONGEST` characters."""
    return ", ".join(repr(item[:LONGEST]) for item in items)


def findings(words: Words, split: Split) -> tuple[Finding, ...]:
    """What in the items may be unintended."""
    return tuple(
        Finding(what, len(items), tuple(items[:EXAMPLES]))
        for what, items in _unintended(words, split)
        if items
    )


def _lengths(words: Words) -> dict[int, int]:
    return dict(sorted(Counter(map(len, words.items)).items()))


def _characters(words: Words) -> dict[str, int]:
    return dict(Counter("".join(words.items)).most_common())


def _unintended(words: Words, split: Split) -> Iterator[tuple[str, Sequence[str]]]:
    items, lengths, characters = words.items, [*_lengths(words)], _characters(words)
    if len(words.lines) > len(items) and words.weights is None:  # weights of repeated items add up
        copies = Counter(words.lines) - Counter(items)
        extra = copies.total()
        yield (
            f"items that occur more than once, with {extra:,} extra line{'s' * (extra != 1)}",
            [item for item, _ in copies.most_common()],
        )
    known = {_folded(item) for item in split.train}
    alike = [item for item in split.validation + split.test if _folded(item) in known]
    yield "held-out items that equal a training item except for case, accents and spaces", alike
    if odd := "".join(re.escape(character) for character in characters if _is_odd(character)):
        search = re.compile(f"[{odd}]").search
        what = "items with control, invisible, private or unassigned characters or U+FFFD"
        yield what, [item for item in items if search(item)]
    alphabets = [
        {each for each in characters if unicodedata.name(each, "").startswith(name)} for name in _ALPHABETS
    ]
    if sum(map(bool, alphabets)) > 1:
        mixed = [item for item in items if sum(not each.isdisjoint(item) for each in alphabets) > 1]
        yield "items that mix alphabets with similar letters", mixed
    far = FAR * sorted(map(len, items))[len(items) // 2]
    if lengths[-1] > far:
        context = 1 + max(length for length in lengths if length <= far)
        what = f"items longer than {FAR} times the median; without them the context would be {context}"
        yield f"{what}, not {lengths[-1] + 1}", [item for item in items if len(item) > far]


def _folded(item: str) -> str:
    """An item without case, accents and spaces."""
    if not item.isascii():
        item = "".join(
            each for each in unicodedata.normalize("NFKD", item) if not unicodedata.combining(each)
        )
    return "".join(item.casefold().split())


def _is_odd(character: str) -> bool:
    category = unicodedata.category(character)
    return (category in ("Cc", "Cf", "Co", "Cn") and character not in _JOINERS) or character == "\ufffd"
