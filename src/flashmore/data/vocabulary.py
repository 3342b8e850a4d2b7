"""Mapping between characters and ids."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from flashmore.errors import DataError

EOS = 0
"""The id used as both BOS and EOS."""

# Keeps messages readable: alphabets are shown in full, thousands of Chinese characters are not.
_SHOWN = 200


@dataclass(frozen=True)
class Vocabulary:
    """A model's characters: id 0 is BOS and EOS, `characters[i]` has id i + 1.

    Raises:
        DataError: not distinct single characters sorted by code point.
    """

    characters: tuple[str, ...]

    def __post_init__(self) -> None:
        single = all(len(character) == 1 for character in self.characters)
        if not single or list(self.characters) != sorted(set(self.characters)):
            raise DataError(
                "a vocabulary: single characters, each once, sorted by code point",
                f"{len(self.characters)} entries that are not",
                "the vocabulary that was stored with the run",
            )

    @classmethod
    def from_items(cls, items: Iterable[str]) -> "Vocabulary":
        """The vocabulary of all characters of the items."""
        return cls(tuple(sorted(set("".join(items)))))

    @property
    def size(self) -> int:
        """Vocabulary size V: the characters plus one for BOS and EOS."""
        return len(self.characters) + 1

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.characters, start=1)}

    @cached_property
    def points(self) -> npt.NDArray[np.uint32]:
        """The code points of the characters, in ascending order."""
        return np.array([*map(ord, self.characters)], dtype=np.uint32)

    @property
    def summary(self) -> str:
        """The first characters, for a message."""
        more = len(self.characters) - _SHOWN
        return " ".join(map(shown, self.characters[:_SHOWN])) + (f" and {more:,} more" if more > 0 else "")

    def encode(self, text: str) -> list[int]:
        """Encode text as ids from 1, without BOS and EOS.

        Raises:
            DataError: the text has characters outside the vocabulary; all are named.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            unknown = dict.fromkeys(character for character in text if character not in self._ids)
            found = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unknown)
            raise DataError("characters in the model's vocabulary", found, self.summary) from None

    def decode_rows(self, ids: npt.NDArray[np.int64]) -> list[str]:
        """Decode rows of ids (B, T), each up to its first EOS or the end; a DataError for an unknown id."""
        stopped = np.logical_or.accumulate(ids == EOS, axis=1)  # (B, T)
        kept = np.where(stopped, EOS, ids)
        unknown = kept[(kept < 0) | (kept >= self.size)]
        if unknown.size:
            raise DataError("ids of this vocabulary", str(unknown[0]), f"0 to {self.size - 1}")
        points = np.concatenate(([np.uint32(0)], self.points))[kept]  # (B, T)
        # A row of code points is a numpy string of length T, without its trailing zeros.
        texts: list[str] = np.ascontiguousarray(points).view(f"U{ids.shape[1]}")[:, 0].tolist()
        return texts


def shown(character: str) -> str:
    """The character, or its code point if it is invisible."""
    seen = character.isprintable() and not character.isspace()
    return character if seen else f"U+{ord(character):04X}"
