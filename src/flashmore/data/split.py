"""Train, validation and test parts: without leaks, or as makemore splits."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np

from flashmore.data.words import Words
from flashmore.errors import DataError, RecipeError

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
    """Share of the test items that stand in train too, in [0, 1]; None where the split cannot leak."""

    def novelty(self, text: str) -> Literal["train", "validation", "test", "new"]:
        """Name the first part that holds the text, in the order train, validation, test; else `new`."""
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

    Shares such as `80/10/10` split the different items: none stands in two parts, every part with a share
    above 0 gets at least one, and the result depends only on the set of items, the shares and the seed,
    not on the order of the file.

    `makemore` repeats the split of Karpathy's makemore for comparison with its losses: all lines, duplicates
    and all, shuffled by its own seed 3407 (`seed` has no say), the last tenth but at most 1,000 as test, and
    no validation part.

    Args:
        words: what `read_words` gave.
        how: percentages for train, validation and test that add up to 100, train above 0; or `makemore`.
        seed: any whole number from 0.

    Raises:
        RecipeError: shares that are not three such numbers, or a negative seed.
        DataError: too few items for the split.
    """
    if how == MAKEMORE:
        return _split_like_makemore(words)
    shares = parse_shares(how)
    if seed < 0:
        raise RecipeError("a seed for the split", str(seed), "any whole number from 0")
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
        RecipeError: not three numbers that add up to 100, the first above 0.
    """
    match = _SHARES.fullmatch(how)
    if match is not None:
        train, validation, test = map(Fraction, match.groups())
        if train > 0 and train + validation + test == 100:
            return train, validation, test
    raise RecipeError(
        "shares in percent for train, validation and test, with something to train on",
        repr(how),
        f"three numbers that add up to 100, the first above 0, such as 80/10/10 or 100/0/0; or {MAKEMORE}",
    )


def _part_sizes(
    count: int, shares: tuple[Fraction, Fraction, Fraction], how: str, source: str
) -> tuple[int, int, int]:
    """Round the held-out parts down, but to no less than one item where they have a share."""
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
    import torch  # only this split needs it: makemore's order is that of torch's generator

    generator = torch.Generator().manual_seed(_MAKEMORE_SEED)
    order = torch.randperm(count, generator=generator, device="cpu").tolist()
    shuffled = tuple(words.lines[index] for index in order)
    train, test = shuffled[:-held_out], shuffled[-held_out:]
    learned = frozenset(train)
    leak_share = sum(item in learned for item in test) / held_out
    return Split(train, (), test, leak_share)
