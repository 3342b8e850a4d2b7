"""One long text as a run knows it: where it came from, how long it is, and which part lies where."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flashmore.data.tokens import (
    MOST_IDS,
    Ids,
    encode_text,
    is_intact,
    open_tokens,
    random_tokens,
    scan_text,
    scan_tokens,
    write_store,
)
from flashmore.data.vocabulary import Vocabulary
from flashmore.data.windows import Parts, cut_parts
from flashmore.errors import DataError, RecipeError

Kind = Literal["characters", "tokens", "random"]
STORE = "tokens.bin"
"""The store's name in a run's folder."""
RANDOM_COUNT, LARGEST_RANDOM = 2**18, 2**27
REAL_GPT2_IDS = 50_257
"""GPT-2's vocabulary; a model with 50,304 ids has 47 that no text holds."""


@dataclass(frozen=True)
class LongText:
    """What a run knows of its text."""

    kind: Kind
    """`characters` of a text file, kept in the run's folder; `tokens` of a `.bin` file, used where it is;
    `random` ids, kept in the run's folder."""
    path: str | None
    """The file, as an absolute path; None for random ids."""
    encoding: str
    count: int
    """Ids in all."""
    largest: int
    """Largest id."""
    origin: str
    """SHA-256 of the text (in UTF-8, as it was read) or of the `.bin` file; a name for random ids."""
    parts: Parts
    store_sha256: str | None = None
    """SHA-256 of the store in the run's folder; None before it is written, and for a `.bin` file."""

    def __post_init__(self) -> None:
        """Refuse what no text is: values of a run's folder come through here.

        Raises:
            ValueError: parts that do not lie one after the other in the text, or a file where there is none.
        """
        bounds = [bound for part in vars(self.parts).values() for bound in part]
        if bounds != sorted(bounds) or bounds[0] < 0 or bounds[-1] > self.count:
            raise ValueError(f"parts at {bounds} of {self.count} ids")
        if self.kind == "random" and self.count > LARGEST_RANDOM:
            raise ValueError(f"{self.count} random ids")
        if (self.path is None) != (self.kind == "random") or not 0 <= self.largest < MOST_IDS:
            raise ValueError(f"{self.kind} of {self.path} up to {self.largest}")

    def stored(self, folder: Path, vocabulary: Vocabulary) -> "LongText":
        """Write the ids into a run's folder, unless they are used where they are.

        Args:
            folder: the run's folder.
            vocabulary: the run's characters.

        Raises:
            DataError: the text is gone, or no longer the same.
            OSError: the disk refused the store.
        """
        if self.kind == "tokens":
            return self
        return replace(self, store_sha256=write_store(folder / STORE, self._make(vocabulary)))

    def ids(self, folder: Path, vocabulary: Vocabulary) -> Ids:
        """Map the ids: (count,) uint16. A store in the run's folder that is missing or damaged is made again.

        Args:
            folder: the run's folder.
            vocabulary: the run's characters.

        Raises:
            DataError: the text or the `.bin` file is needed, and is gone or no longer the same.
            OSError: the disk refused the store.
        """
        if self.kind == "tokens":
            path = Path(self.path or "")
            size = path.stat().st_size if path.exists() else 0
            inside = path.resolve().parent == folder.resolve()  # such a file changes while the run trains
            if path.exists() and (inside or size != 2 * self.count):
                found = "a file of the run itself" if inside else f"a file of {size:,} bytes"
                raise DataError(f"{self.count:,} tokens in {path}", found, "that file again")
            if scan_tokens(path, self.count) != (self.count, self.largest, self.origin):
                raise DataError(
                    f"the tokens that {path} held when the run began", "others", "that file again"
                )
            return open_tokens(path)
        store, sha256 = folder / STORE, self.store_sha256 or ""
        if (
            not is_intact(store, self.count, sha256)
            and self.stored(folder, vocabulary).store_sha256 != sha256
        ):
            found = "another one, or one that is encoded differently"
            raise DataError(f"the text that {self.path} held when the run began", found, "that text again")
        return open_tokens(store)

    def _make(self, vocabulary: Vocabulary) -> Iterable[Ids]:
        if self.kind == "random":
            return random_tokens(self.count, self.largest + 1, seed=0)
        return encode_text(Path(self.path or ""), self.encoding, vocabulary, self.origin)


def read_long_text(
    file: Path | None, encoding: str, shares: str, context: int, vocabulary_size: int | None
) -> tuple[LongText, Vocabulary, int]:
    """Pass once over a text, a `.bin` file of 16-bit ids, or neither, and cut it into parts.

    Args:
        file: a text, or a name that ends in `.bin`; None for random ids.
        encoding: of a text.
        shares: of train, validation and test, such as 80/10/10.
        context: T, so that a text that is too short is refused.
        vocabulary_size: ids of the model, for tokens and random ids; None means the largest one plus 1.

    Returns:
        The text, its characters (none for ids), and the number of ids V that a model of it needs.

    Raises:
        DataError: see `read_text`, `scan_tokens` and `cut_parts`; or ids beyond the vocabulary.
        RecipeError: shares that are none, or neither file nor vocabulary size.
    """
    source = "the random ids" if file is None else str(file)
    path = None if file is None else str(file.absolute())
    empty = Vocabulary(())
    if file is not None and file.suffix.lower() != ".bin":
        _refuse_vocabulary_size(file, vocabulary_size)
        facts = scan_text(file, encoding)
        parts = cut_parts(facts.count, shares, context, source)
        size = len(facts.vocabulary.characters)
        text = LongText("characters", path, encoding, facts.count, size - 1, facts.sha256, parts)
        return text, facts.vocabulary, size
    if file is not None:
        count, largest, origin = scan_tokens(file)
        size = vocabulary_size or largest + 1
        if largest >= size:
            raise DataError(
                f"ids below --vocabulary {size:,} in {file}",
                f"the id {largest:,}",
                f"--vocabulary {largest + 1}",
            )
        text = LongText(
            "tokens", path, encoding, count, largest, origin, cut_parts(count, shares, context, source)
        )
        return text, empty, size
    if vocabulary_size is None:
        raise RecipeError(
            "a text for --mode text",
            "no FILE",
            "a text file, a .bin file of ids, or --vocabulary for random ids",
        )
    count = max(RANDOM_COUNT, 100 * (context + 1))
    ids = min(vocabulary_size, REAL_GPT2_IDS)
    parts = cut_parts(count, shares, context, source)
    return (
        LongText("random", None, encoding, count, ids - 1, f"random {ids} {count}", parts),
        empty,
        vocabulary_size,
    )


def _refuse_vocabulary_size(file: Path, vocabulary_size: int | None) -> None:
    if vocabulary_size is not None:
        raise RecipeError(
            "--vocabulary for a .bin file of ids or for random ids",
            f"the text {file}, whose characters are the vocabulary",
            "the same without --vocabulary (a preset that sets it wants ids)",
        )
