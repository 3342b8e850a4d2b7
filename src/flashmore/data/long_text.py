"""One long text as a run knows it: where it came from, how long it is, and which part lies where."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from flashmore.data.tokens import (
    Ids,
    digest_of,
    encode_text,
    obtain,
    open_tokens,
    random_tokens,
    scan_text,
    scan_tokens,
)
from flashmore.data.vocabulary import Vocabulary
from flashmore.data.windows import Parts, cut_parts
from flashmore.errors import DataError, RecipeError

Kind = Literal["characters", "tokens", "random"]
STORE = "tokens.bin"
"""The store's name in a run's folder; its header is tokens.json."""
RANDOM_COUNT = 2**18
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
            if digest_of(path) != self.origin:
                raise DataError(
                    f"the tokens that {path} held when the run began", "others", "that file again"
                )
            return open_tokens(path)
        return obtain(folder / STORE, self.origin, lambda: self._make(vocabulary))

    def _make(self, vocabulary: Vocabulary) -> Iterable[Ids]:
        if self.kind == "random":
            return random_tokens(self.count, self.largest + 1, seed=0)
        return encode_text(Path(self.path or ""), self.encoding, vocabulary, self.origin)

    def to_json(self) -> dict[str, Any]:
        """Give it as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "LongText":
        """The inverse of `to_json`.

        Raises:
            LookupError, TypeError, ValueError: it is not what `to_json` gives.
        """
        bounds = {name: (int(start), int(stop)) for name, (start, stop) in values["parts"].items()}
        if values["kind"] not in get_args(Kind):
            raise ValueError(f"kind = {values['kind']!r}")
        return cls(**{**values, "parts": Parts(**bounds)})


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
