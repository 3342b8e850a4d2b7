"""A run's long text: its source, length and parts."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from flashmore.data.items import require_encoding
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
from flashmore.errors import ConfigError, DataError
from flashmore.files import INTACT, open_input

Kind = Literal["characters", "tokens", "random"]
STORE = "tokens.bin"
"""Name of the token file in a run's folder."""
RANDOM_COUNT = 2**18
"""Minimum number of random ids: see `random_facts`."""
REAL_GPT2_IDS = 50_257
"""GPT-2's vocabulary size; a model with 50,304 ids has 47 unused ones."""
MOST_BYTES = 32
"""Most bytes of a file per stored character: NFC composes up to four characters, a line ending up to two, and
UTF-7 needs up to eight bytes per character."""


@dataclass(frozen=True)
class LongText:
    """Metadata of a run's text."""

    kind: Kind
    """`characters` of a text file, stored in the run's folder; `tokens` of a `.bin` file, used in place;
    `random` ids, stored in the run's folder."""
    path: str | None
    """The file, as an absolute path; None for random ids."""
    encoding: str
    count: int
    """Number of ids."""
    largest: int
    """Largest id."""
    origin: str
    """SHA-256 of the text (as read, in UTF-8) or of the `.bin` file; a name for random ids."""
    parts: Parts
    store_sha256: str | None = None
    """SHA-256 of the token file in the run's folder; None before it is written, and for a `.bin` file."""

    def __post_init__(self) -> None:
        """Validate the values, which may come from a run's folder.

        Raises:
            ValueError: parts that are not consecutive ranges of the text, a file for random ids, or a path
                that is not absolute.
            DataError: an encoding that is not used for files.
        """
        bounds = [bound for part in vars(self.parts).values() for bound in part]
        if bounds != sorted(bounds) or bounds[0] < 0 or bounds[-1] > self.count:
            raise ValueError(f"parts at {bounds} of {self.count} ids")
        if (self.path is None) != (self.kind == "random") or not 0 <= self.largest < MOST_IDS:
            raise ValueError(f"{self.kind} of {self.path} up to {self.largest}")
        if self.path is not None and not _is_absolute(self.path):
            raise ValueError(f"{self.path}, which is no absolute path")
        require_encoding(self.encoding)

    def stored(self, folder: Path, vocabulary: Vocabulary) -> "LongText":
        """Write the ids into a run's folder, unless they are used in place.

        Args:
            folder: the run's folder.
            vocabulary: the run's characters.

        Raises:
            DataError: the text is missing or has changed.
            OSError: the token file could not be written.
        """
        if self.kind == "tokens":
            return self
        return replace(self, store_sha256=write_store(folder / STORE, self._make(vocabulary)))

    def ids(self, folder: Path, vocabulary: Vocabulary) -> Ids:
        """Map the ids: (count,) uint16. A missing or damaged token file in the run's folder is rebuilt.

        Args:
            folder: the run's folder.
            vocabulary: the run's characters.

        Raises:
            DataError: the text or the `.bin` file is needed, but missing or changed.
            OSError: the token file could not be written.
        """
        if self.kind == "tokens":
            return self._ids_in_place(folder)
        store = folder / STORE
        facts = self.count, self.largest, self.store_sha256 or ""
        if not is_intact(store, *facts):
            self.stored(folder, vocabulary)
            if not is_intact(store, *facts):
                store.unlink()
                what = f"text that {self.path} held" if self.path else "sequence of random ids that there was"
                valid = "the same again" if self.path else INTACT
                raise DataError(
                    f"the {what} when the run began", "another one, or one that is encoded differently", valid
                )
        return open_tokens(store)

    def _ids_in_place(self, folder: Path) -> Ids:
        path = Path(self.path or "")
        size = self._size(path)
        inside = path.resolve().parent == folder.resolve()  # such a file changes while the run trains
        if inside or size != 2 * self.count:
            found = "a file of the run itself" if inside else f"a file of {size:,} bytes"
            raise DataError(f"{self.count:,} tokens in {path}", found, "that file again")
        if scan_tokens(path, self.count) != (self.count, self.largest, self.origin):
            raise DataError(f"the tokens that {path} held when the run began", "others", "that file again")
        return open_tokens(path)

    def _make(self, vocabulary: Vocabulary) -> Iterable[Ids]:
        if self.kind == "random":
            return random_tokens(self.count, self.largest + 1, seed=0)
        path = Path(self.path or "")
        size, most = self._size(path), MOST_BYTES * (self.count + 1)
        if size > most:  # an untrusted run may name any file of the user; do not read a large one in vain
            wanted = f"a text of {self.count:,} characters in {path}: at most {most:,} bytes"
            raise DataError(wanted, f"{size:,} bytes", "the text that it held when the run began")
        return encode_text(path, self.encoding, vocabulary, self.origin)

    def _size(self, path: Path) -> int:
        """Size in bytes of a file that the run names.

        Raises:
            DataError: it is missing, unreadable, or cannot be read twice; see `open_input`.
        """
        with open_input(path, f"what the run was trained on in {path}", again=True) as file:
            return os.fstat(file.fileno()).st_size


def read_long_text(
    file: Path | None, encoding: str, shares: str, context: int, vocabulary_size: int | None
) -> tuple[LongText, Vocabulary, int]:
    """Scan a text or a `.bin` file of 16-bit ids, or plan random ids, and split it into parts.

    Args:
        file: a text, or a name that ends in `.bin`; None for random ids.
        encoding: encoding of a text.
        shares: percentages for train, validation and test, such as 80/10/10.
        context: T; a text that is too short for it is refused.
        vocabulary_size: vocabulary size for tokens and random ids; None means the largest id plus 1.

    Returns:
        The text, its characters (none for ids), and the vocabulary size V of a model.

    Raises:
        DataError: see `read_text`, `scan_tokens` and `cut_parts`; ids beyond the vocabulary; or a path that a
            run cannot store, because it is not UTF-8.
        ConfigError: invalid shares, or neither file nor vocabulary size.
    """
    source = "the random ids" if file is None else str(file)
    path = None if file is None else str(file.absolute())
    if path is not None:
        _require_unicode(path)
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
                f"ids below --vocab-size {size:,} in {file}",
                f"the id {largest:,}",
                f"--vocab-size {largest + 1}",
            )
        text = LongText(
            "tokens", path, encoding, count, largest, origin, cut_parts(count, shares, context, source)
        )
        return text, empty, size
    if vocabulary_size is None:
        raise ConfigError(
            "a text for --mode text",
            "no FILE",
            "a text file, a .bin file of ids, or --vocab-size for random ids",
        )
    count, largest, origin = random_facts(context, vocabulary_size)
    parts = cut_parts(count, shares, context, source)
    return LongText("random", None, encoding, count, largest, origin, parts), empty, vocabulary_size


def _is_absolute(path: str) -> bool:
    """Whether a path is absolute on any operating system: the run may come from another one."""
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def random_facts(context: int, vocabulary_size: int) -> tuple[int, int, str]:
    """Count, largest id and origin of the random ids for a model with this context and vocabulary."""
    count = max(RANDOM_COUNT, 100 * (context + 1))
    ids = min(vocabulary_size, REAL_GPT2_IDS)
    return count, ids - 1, f"random {ids} {count}"


def _require_unicode(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DataError(
            "a path in UTF-8, for the run to find its text again",
            ascii(path),
            "the text in a folder whose path is UTF-8",
        ) from None


def _refuse_vocabulary_size(file: Path, vocabulary_size: int | None) -> None:
    if vocabulary_size is not None:
        raise ConfigError(
            "--vocab-size for a .bin file of ids or for random ids",
            f"the text {file}, whose characters are the vocabulary",
            "the same without --vocab-size (a preset that sets it wants ids)",
        )
