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
        single = all(isinstance(character, str) and len(character) == 1 for character in self.characters)
        if not single or list(self.characters) != sorted(set(self.characters)):
            raise DataError(
                "a vocabulary: single characters, each once, sorted by code point",
                f"{len(self.characters)} entries of which some are not",
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

    def encode(self, text: str) -> list[int]:
        """Encode text as ids from 1, without BOS and EOS.

        Raises:
            DataError: the text has characters outside the vocabulary; all are named.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            unknown = dict.fromkeys(character for character in text if character not in self._ids)
            raise DataError(
                "characters that the model has learned",
                ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unknown),
                self._describe(),
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text, up to the first EOS or the end.

        Raises:
            DataError: an unknown id before EOS.
        """
        characters = []
        for number in ids:
            if number == EOS:
                break
            if not 0 < number < self.size:
                raise DataError("ids of this vocabulary", str(number), f"0 to {self.size - 1}")
            characters.append(self.characters[number - 1])
        return "".join(characters)

    def decode_rows(self, ids: npt.NDArray[np.int64]) -> list[str]:
        """Decode rows of ids (B, T) in one batch, each up to its first EOS or the end.

        Raises:
            DataError: an unknown id before EOS.
        """
        stopped = np.logical_or.accumulate(ids == EOS, axis=1)  # (B, T)
        kept = np.ascontiguousarray(np.where(stopped, EOS, ids))
        if kept.size == 0 or kept.min() < 0 or kept.max() >= self.size:
            return [self.decode(row) for row in ids.tolist()]  # raises an error that names the id
        points = np.array([0, *map(ord, self.characters)], dtype=np.uint32)[kept]  # (B, T)
        # A row of code points is a numpy string of length T, without its trailing zeros.
        texts: list[str] = points.view(f"U{ids.shape[1]}")[:, 0].tolist()
        return texts

    def to_json(self) -> dict[str, list[str]]:
        """The vocabulary as a JSON object."""
        return {"characters": list(self.characters)}

    @classmethod
    def from_json(cls, value: object) -> "Vocabulary":
        """Build a vocabulary from the output of `to_json`.

        Raises:
            DataError: the value is not an output of `to_json`.
        """
        characters = value.get("characters") if isinstance(value, dict) else None
        if not isinstance(characters, list):
            raise DataError(
                "a vocabulary: an object with the list 'characters'",
                f"{type(value).__name__} without it",
                "the vocabulary that was stored with the run",
            )
        return cls(tuple(characters))

    def _describe(self) -> str:
        shown = (
            character if character.isprintable() and not character.isspace() else f"U+{ord(character):04X}"
            for character in self.characters[:_SHOWN]
        )
        more = self.size - 1 - _SHOWN
        return " ".join(shown) + (f" and {more:,} more" if more > 0 else "")
