"""Items, one per line: read, cleaned, and split into train, validation and test."""

import codecs
import re
import sys
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np

from flashmore.errors import ConfigError, DataError
from flashmore.files import is_of_no_file, open_input

MAX_LENGTH = 1000
"""Longest item in characters."""
LARGEST_FILE = 2**27
"""Largest file of items in bytes; it is read into memory."""

MOST_LINES = 6_000_000

BUILT_IN = "built-in names"
"""`Words.source` of the names included in the package (see NAMES.md)."""

# str.splitlines() would also split at form feeds, U+2028 and others, which may occur inside an item.
LINE_END = re.compile(r"\r\n|\r|\n")
"""Line endings."""
NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]")
"""Control characters that do not occur in text, and lone surrogates, which UTF-8 cannot encode."""
MOST_MARKS = 100
"""Most consecutive combining marks: Unicode's Stream-Safe Text Format (UAX 15) has at most 30. Normalisation
is quadratic in their number."""
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ENCODINGS = "--encoding utf-16, latin-1, cp1252, shift_jis, gb18030 or another that Python knows"
"""Suggestion for bytes that are not in the given encoding."""


@dataclass(frozen=True)
class Words:
    """The items of a file, cleaned."""

    lines: tuple[str, ...]
    """Every item in the order of the file, duplicates kept."""
    items: tuple[str, ...]
    """Each different item once, in order of first appearance."""
    duplicates: int
    """How many lines repeat an earlier one: `len(lines) - len(items)`."""
    source: str
    """The path as given, or `built-in names`."""


def read_words(path: Path | None, encoding: str = "utf-8") -> Words:
    """Read one item per line.

    Lines end with LF, CRLF or CR. Byte-order marks, blank lines and spaces around items are dropped, and
    Unicode is normalised, so that different encodings of the same item are equal.

    Args:
        path: a text file; None for the built-in names, for which `encoding` is ignored.
        encoding: the file's encoding, by any name that Python knows.

    Raises:
        DataError: the file is missing, a folder, unreadable, empty, blank, binary or in another encoding; a
            line is longer than `MAX_LENGTH`; or the encoding is unknown.
    """
    require_encoding(encoding)
    if path is None:
        source, encoding = BUILT_IN, "utf-8"
        data = resources.files("flashmore.data").joinpath("names.txt").read_bytes()
    else:
        source = str(path)
        data = _read_bytes(path)
    lines = _clean_lines(_decode(data, encoding, source), source)
    items = tuple(dict.fromkeys(lines))
    return Words(lines, items, len(lines) - len(items), source)


def normalize(text: str) -> str:
    """Normalise text to the form in which items are stored, so that user input can be looked up.

    The form is Unicode's NFC (Unicode Standard Annex 15) without byte-order marks; surrounding spaces stay.
    """
    # Concatenating files leaves byte-order marks inside the text; as a character, Unicode deprecates them.
    return unicodedata.normalize("NFC", text.replace("\ufeff", ""))


def require_few_marks(text: str, source: str) -> None:
    """Refuse text that is slow to normalise.

    Raises:
        DataError: more than `MOST_MARKS` consecutive combining marks.
    """
    if not text.isascii() and (found := _many_marks().search(text)):
        raise DataError(
            f"at most {MOST_MARKS} combining marks in a row in {source}",
            f"more of them after {text[max(found.start() - 10, 0) : found.start()]!r}",
            "text without them",
        )


@cache
def _many_marks() -> re.Pattern[str]:
    # Characters that decompose into marks count as marks too.
    every = map(chr, range(sys.maxunicode + 1))
    marks = "".join(char for char in every if unicodedata.combining(unicodedata.normalize("NFD", char)[0]))
    return re.compile(f"[{marks}]{{{MOST_MARKS + 1}}}")


def require_encoding(encoding: str) -> None:
    """Refuse a name that is not a text encoding.

    Raises:
        DataError: Python knows no text encoding of that name, or it is not used for files.
    """
    found = repr(encoding)
    try:
        if not is_of_no_file(encoding):
            # bytes.decode accepts any name for empty input; "replace" is needed to name the bad line.
            "a".encode(encoding, "replace")
            return
        found += ", which Python knows, but no file is written in it"
    except (LookupError, ValueError):
        pass
    raise DataError("the name of a text encoding", found, f"utf-8, or {ENCODINGS}")


def _read_bytes(path: Path) -> bytes:
    wanted = f"a text file with one item a line at {path}"
    valid = "the path of a file that you may read, or no file for the built-in names"
    with open_input(path, wanted, valid) as file:
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise DataError(wanted, f"more than {LARGEST_FILE:,} bytes", "a smaller file, or --mode text")
    return data


def _decode(data: bytes, encoding: str, source: str) -> str:
    wanted = f"text in {encoding} in {source}"
    valid = f"a file saved as UTF-8, or its own encoding by name: {ENCODINGS}"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = _line_at(data[: error.start].decode(encoding, "replace"))
        found = f"line {line}: byte 0x{data[error.start]:02x} is not {encoding} ({error.reason})"
        raise DataError(wanted, found + other_signs(data), valid) from None
    except UnicodeError as error:
        raise DataError(wanted, str(error) + other_signs(data), valid) from None
    if stray := NOT_TEXT.search(text):
        code = f"U+{ord(stray.group()):04X}"
        found = f"line {_line_at(text[: stray.start()])}: the character {code}, which no text holds"
        raise DataError(wanted, f"{found}; this may be a binary file", valid)
    return text


def _line_at(before: str) -> int:
    return len(LINE_END.findall(before)) + 1


def other_signs(data: bytes) -> str:
    """Further evidence against the encoding, to be added to a message; may be empty."""
    if data.startswith(_UTF_16_MARKS):
        return "; the file begins as UTF-16 does"
    if b"\0" in data:
        return "; it holds NUL bytes, as binary files do"
    return ""


def _clean_lines(text: str, source: str) -> tuple[str, ...]:
    wanted = f"at least one item in {source}"
    valid = "a text file with one item a line"
    if not text:
        raise DataError(wanted, "an empty file", valid)
    require_few_marks(text, source)
    count = text.count("\n") + text.count("\r") - text.count("\r\n")
    if count > MOST_LINES:
        allowed = f"at most {MOST_LINES:,} lines in {source}"
        raise DataError(allowed, f"{count:,}", "a smaller file, or --mode text")
    lines = [line.strip() for line in LINE_END.split(normalize(text))]
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LENGTH:
            raise DataError(
                f"items of at most {MAX_LENGTH:,} characters in {source}",
                f"line {number}: {len(line):,} characters",
                f"{valid}, each of 1 to {MAX_LENGTH:,} characters",
            )
    items = tuple(line for line in lines if line)
    if not items:
        raise DataError(wanted, "only blank lines", valid)
    return items


MAKEMORE = "makemore"
_MAKEMORE_SEED = 3407
_MAKEMORE_LARGEST_TEST = 1000

_SHARE = r"(\d{1,3}(?:\.\d{1,6})?)"
_SHARES = re.compile(f"{_SHARE}/{_SHARE}/{_SHARE}", re.ASCII)


@dataclass(frozen=True)
class Split:
    """The items of each part, in the shuffled order."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    leak_share: float | None
    """Share of the test items that are also in train, in [0, 1]; None if the split cannot leak."""

    def novelty(self, text: str) -> Literal["train", "validation", "test", "new"]:
        """The first part that contains the text, in the order train, validation, test; else `new`."""
        train, validation, test = self._parts
        if text in train:
            return "train"
        if text in validation:
            return "validation"
        return "test" if text in test else "new"

    @cached_property
    def _parts(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        return frozenset(self.train), frozenset(self.validation), frozenset(self.test)


def split_words(words: Words, how: str = "80/10/10", seed: int = 3407) -> Split:
    """Split items into train, validation and test.

    Shares such as `80/10/10` split the distinct items: none is in two parts, every part with a share above 0
    gets at least one, and the result depends only on the set of items, the shares and the seed, not on the
    order of the file.

    `makemore` reproduces the split of Karpathy's makemore for comparison with its losses: all lines including
    duplicates, shuffled with seed 3407 (`seed` is ignored), the last tenth but at most 1,000 as test, and no
    validation part.

    Args:
        words: the result of `read_words`.
        how: percentages for train, validation and test that add up to 100, train above 0; or `makemore`.
        seed: a non-negative integer.

    Raises:
        ConfigError: shares that are not three such numbers, or a negative seed.
        DataError: too few items for the split.
    """
    if how == MAKEMORE:
        return _split_like_makemore(words)
    shares = parse_shares(how)
    if seed < 0:
        raise ConfigError("a seed for the split", str(seed), "any whole number from 0")
    train, validation, test = _part_sizes(len(words.items), shares, how, words.source)
    items = sorted(words.items)
    shuffled = tuple(items[index] for index in np.random.default_rng(seed).permutation(len(items)).tolist())
    return Split(
        train=shuffled[:train],
        validation=shuffled[train : train + validation],
        test=shuffled[train + validation : train + validation + test],
        leak_share=None,
    )


def parse_shares(how: str) -> tuple[Fraction, Fraction, Fraction]:
    """Read percentages for train, validation and test such as `80/10/10`.

    Raises:
        ConfigError: not three numbers that add up to 100, the first above 0.
    """
    match = _SHARES.fullmatch(how)
    if match is not None:
        train, validation, test = map(Fraction, match.groups())
        if train > 0 and train + validation + test == 100:
            return train, validation, test
    raise ConfigError(
        "shares in percent for train, validation and test, with something to train on",
        repr(how),
        "three numbers that add up to 100, the first above 0, such as 80/10/10 or 100/0/0;"
        f" or {MAKEMORE}, for items alone",
    )


def _part_sizes(
    count: int, shares: tuple[Fraction, Fraction, Fraction], how: str, source: str
) -> tuple[int, int, int]:
    """Round the held-out parts down, but to at least one item if they have a share."""
    needed = sum(share > 0 for share in shares)
    if count < needed:
        raise DataError(
            f"at least {needed} different items in {source}: one for each part of the split {how}",
            f"{count} different item{'s' if count > 1 else ''}",
            f"{needed} or more; or the split 100/0/0, which holds nothing out and for which one is enough",
        )
    validation, test = (max(int(count * share / 100), int(share > 0)) for share in shares[1:])
    while validation + test >= count:  # a large share of few items, after another was raised to one
        if validation > test:
            validation -= 1
        else:
            test -= 1
    return count - validation - test, validation, test


def _split_like_makemore(words: Words) -> Split:
    count = len(words.lines)
    held_out = min(_MAKEMORE_LARGEST_TEST, count // 10)
    if held_out == 0:
        raise DataError(
            f"at least 10 lines in {words.source} for makemore's split, which tests on a tenth of them",
            f"{count} line{'s' if count > 1 else ''}",
            "10 lines or more; or shares such as 80/10/10",
        )
    import torch  # only this split needs it: makemore shuffles with torch's generator

    generator = torch.Generator().manual_seed(_MAKEMORE_SEED)
    order = torch.randperm(count, generator=generator, device="cpu").tolist()
    shuffled = tuple(words.lines[index] for index in order)
    train, test = shuffled[:-held_out], shuffled[-held_out:]
    learned = frozenset(train)
    leak_share = sum(item in learned for item in test) / held_out
    return Split(train, (), test, leak_share)
