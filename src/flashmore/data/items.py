"""Items, one per line or row: read, cleaned, and split into train, validation and test."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flashmore.data.inputs import looks_like, read_array, read_columns, read_files, read_lines, require_few
from flashmore.data.text import LINE_END, NOT_TEXT, normalize_file, require_encoding
from flashmore.errors import ConfigError, DataError

MAX_LENGTH = 1000
"""Longest item in characters."""


@dataclass(frozen=True)
class Words:
    """The items of a file, cleaned, in the order of the file."""

    lines: tuple[str, ...]
    """With duplicates."""
    items: tuple[str, ...]
    """Without."""
    source: str
    """The path as given, or `built-in names`."""
    notes: tuple[str, ...] = ()
    """Remarks for the user about how the file was read."""
    weights: tuple[float, ...] | None = None
    """One above 0 for each of `items`: the sum over its lines. None if every item counts once."""


def read_words(
    path: Path | None, encoding: str = "utf-8", column: str | None = None, weight: str | None = None
) -> Words:
    """Read one item per line, or per row of a table.

    Lines end with LF, CRLF or CR. Byte-order marks, blank items and spaces around items are dropped, and
    Unicode is normalised, so that different encodings of the same item are equal.

    Args:
        path: a text file, a table, or a folder of them; `-` for stdin; None for the built-in names (see
            NAMES.md). docs/input.md describes them.
        encoding: the encoding of text, by any name that Python knows.
        column: the column of a table that holds the items; None for lines.
        weight: the column that holds their weights. Rows of weight 0 are left out.

    Raises:
        DataError: the file is missing, unreadable, empty, blank, binary or in another encoding; an item is
            longer than `MAX_LENGTH`; there is no such column; a weight is negative or not finite, or none is
            above 0; or the encoding is unknown.
        ConfigError: a weight without a column.
    """
    if weight is not None and column is None:
        raise ConfigError("--column with --weight", "no --column", "a table, with both columns given by name")
    require_encoding(encoding)
    source, notes = "built-in names" if path is None else str(path), list[str]()
    lines, empty = list[str](), True
    totals: dict[str, float] = {}
    for name, data in _built_in() if path is None else read_files(path):
        if column is not None:
            columns = (column,) if weight is None else (column, weight)
            for number, (cell, *others) in read_columns(data, name, encoding, columns):
                if not (item := _cell(cell, f"line {number}", name)):
                    continue
                for other in others:
                    totals[item] = totals.get(item, 0.0) + _weight(other, f"line {number}", name)
                lines.append(item)
        else:
            if (strings := read_array(data, name, encoding)) is not None:
                cells = (_cell(each, f"line {at}", name) for at, each in enumerate(strings, start=1))
                lines += filter(None, cells)
                continue
            found = read_lines(data, name, encoding if path else "utf-8")
            if table := looks_like(found):
                notes.append(
                    f"{name} looks like {table}: use --column NAME to read a column; whole lines are read now"
                )
            found = [line.strip() for line in found]
            if max(map(len, found)) > MAX_LENGTH:
                for number, line in enumerate(found, start=1):
                    _require_length(line, f"line {number}", name)
            lines += filter(None, found)
        require_few(len(lines), source)
        empty = empty and not data
    if not lines:
        blank = "an empty file" if empty else "only blank lines"
        raise DataError(f"at least one item in {source}", blank, "a text file with one item per line")
    if weight is None:
        return Words(tuple(lines), tuple(dict.fromkeys(lines)), source, tuple(notes))
    weights = {item: total for item, total in totals.items() if total > 0}
    if not weights or not math.isfinite(sum(weights.values())):
        told = "a sum too large for float64" if weights else "none"
        wanted = f"weights above 0 in the column '{weight}' of {source}"
        raise DataError(wanted, told, "finite numbers of at least 0, at least one of them above 0")
    if left_out := len(totals) - len(weights):
        notes.append(f"{left_out:,} item{'s' * (left_out > 1)} with weight 0 skipped")
    lines = [line for line in lines if line in weights]
    return Words(tuple(lines), tuple(weights), source, tuple(notes), tuple(weights.values()))


def _built_in() -> Iterator[tuple[str, bytes]]:
    yield "built-in names", resources.files("flashmore.data").joinpath("names.txt").read_bytes()


def _cell(value: Any, place: str, source: str) -> str:
    """The item in a cell of a table, which is empty for a blank one."""
    wanted, valid = f"text in the column of {source}", "a column of strings"
    if not isinstance(value, str | None):
        raise DataError(wanted, f"{place}: {value!r}", valid)
    item = LINE_END.sub("\n", normalize_file(value or "", source)).strip()
    if stray := NOT_TEXT.search(item):
        found = f"{place}: the character U+{ord(stray.group()):04X}, which is not text"
        raise DataError(wanted, found, valid)
    _require_length(item, place, source)
    return item


def _weight(value: Any, place: str, source: str) -> float:
    """The weight in a cell of a table."""
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        wanted, found = f"weights in {source}", f"{place}: {value!r:.60}"
        raise DataError(wanted, found, "finite numbers of at least 0, such as 3 or 0.25")
    return number


def _require_length(item: str, place: str, source: str) -> None:
    if len(item) > MAX_LENGTH:
        raise DataError(
            f"items of at most {MAX_LENGTH:,} characters in {source}",
            f"{place}: {len(item):,} characters",
            f"one item per line, each of 1 to {MAX_LENGTH:,} characters",
        )


MAKEMORE = "makemore"
_MAKEMORE_SEED = 3407
_MAKEMORE_LARGEST_TEST = 1000
_SHARE = r"(\d{1,3}(?:\.\d{1,6})?)"
_SHARES = re.compile(f"{_SHARE}/{_SHARE}/{_SHARE}", re.ASCII)
Novelty = Literal["train", "validation", "test", "new", "unknown"]
"""The first part of the data that contains a text, in the order train, validation, test; else `new`;
`unknown` without the data."""


@dataclass(frozen=True)
class Weights:
    """The weights of each part's items."""

    train: tuple[float, ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]


def effective(weights: Sequence[float]) -> float:
    """Number of items of equal weight whose mean is as exact: (Σw)² / Σw² (Kish's effective sample size)."""
    shares = np.asarray(weights) / sum(weights)
    return float(1 / np.square(shares).sum())


@dataclass(frozen=True)
class Split:
    """The items of each part, in the shuffled order."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    leak_share: float | None
    """Share of the test items that are also in train, in [0, 1]; None if the split cannot leak."""
    weights: Weights | None = None
    """None if every item counts once."""

    def novelty(self, text: str) -> Novelty:
        """See `Novelty`."""
        return self._novelties.get(text, "new" if self.train else "unknown")

    @cached_property
    def _novelties(self) -> dict[str, Novelty]:
        found: dict[str, Novelty] = dict.fromkeys(self.test, "test")
        found |= dict.fromkeys(self.validation, "validation")
        return found | dict.fromkeys(self.train, "train")


def split_words(words: Words, how: str = "80/10/10", seed: int = 3407) -> Split:
    """Split items into train, validation and test.

    Shares such as `80/10/10` split the distinct items: none is in two parts, every part with a share above 0
    gets at least one, and the result depends only on the set of items, the shares and the seed, not on the
    order of the file.

    `makemore` reproduces the split of Karpathy's makemore for comparison with its losses: all lines including
    duplicates, shuffled with seed 3407 (`seed` is ignored), the last tenth but at most 1,000 as test, and no
    validation part.

    Weights play no part in it.

    Raises:
        ConfigError: shares that are not three such numbers, a negative seed, or `makemore` with weights.
        DataError: too few items for the split.
    """
    if how == MAKEMORE:
        if words.weights is not None:
            found = f"--split {MAKEMORE}, which repeats items"
            raise ConfigError("a split by percentages with --weight", found, "percentages such as 80/10/10")
        return _split_like_makemore(words)
    shares = parse_shares(how)
    if seed < 0:
        raise ConfigError("a seed for the split", str(seed), "a whole number of at least 0")
    validation, test = _held_out_sizes(len(words.items), shares, how, words.source)
    items = sorted(words.items)
    shuffled = tuple(map(items.__getitem__, np.random.default_rng(seed).permutation(len(items)).tolist()))
    first, second = len(items) - validation - test, len(items) - test
    parts, weights = (shuffled[:first], shuffled[first:second], shuffled[second:]), None
    if words.weights is not None:
        of_item = dict(zip(words.items, words.weights, strict=True))
        weights = Weights(*(tuple(map(of_item.__getitem__, part)) for part in parts))
    return Split(*parts, leak_share=None, weights=weights)


def parse_shares(how: str) -> tuple[Fraction, Fraction, Fraction]:
    """Read percentages such as `80/10/10`; a ConfigError unless they add up to 100, the first above 0."""
    match = _SHARES.fullmatch(how)
    if match is not None:
        train, validation, test = map(Fraction, match.groups())
        if train > 0 and train + validation + test == 100:
            return train, validation, test
    raise ConfigError(
        "percentages for train, validation and test",
        repr(how),
        "three numbers that add up to 100, the first above 0, such as 80/10/10 or 100/0/0;"
        f" or {MAKEMORE}, for items only",
    )


def _held_out_sizes(count: int, shares: tuple[Fraction, ...], how: str, source: str) -> tuple[int, int]:
    """Sizes of validation and test, rounded down, but to at least one item if they have a share."""
    needed = sum(share > 0 for share in shares)
    if count < needed:
        raise DataError(
            f"at least {needed} different items in {source}: one for each part of the split {how}",
            f"{count} different item{'s' if count > 1 else ''}",
            f"{needed} or more; or --split 100/0/0, which holds out nothing and needs only one",
        )
    validation, test = (max(int(count * share / 100), int(share > 0)) for share in shares[1:])
    while validation + test >= count:  # a large share of few items, after another was raised to one
        if validation > test:
            validation -= 1
        else:
            test -= 1
    return validation, test


def _split_like_makemore(words: Words) -> Split:
    count = len(words.lines)
    held_out = min(_MAKEMORE_LARGEST_TEST, count // 10)
    if held_out == 0:
        raise DataError(
            f"at least 10 lines in {words.source} for makemore's split, which tests on a tenth of them",
            f"{count} line{'s' if count > 1 else ''}",
            "10 lines or more, or percentages such as 80/10/10",
        )
    import torch  # only this split needs it: makemore shuffles with torch's generator

    generator = torch.Generator().manual_seed(_MAKEMORE_SEED)
    order = torch.randperm(count, generator=generator, device="cpu").tolist()
    shuffled = tuple(words.lines[index] for index in order)
    train, test = shuffled[:-held_out], shuffled[-held_out:]
    learned = frozenset(train)
    return Split(train, (), test, leak_share=sum(item in learned for item in test) / held_out)
