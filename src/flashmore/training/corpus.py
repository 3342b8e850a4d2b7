"""The data of a run, items or one long text: read once and opened part by part."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from flashmore.config import DataConfig, TrainConfig
from flashmore.data.batches import Windows, encode_items
from flashmore.data.items import Split, read_words, split_words
from flashmore.data.long_text import Ids, LongText, read_long_text
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import RunError
from flashmore.files import INTACT, disk_errors
from flashmore.models.config import ModelConfig
from flashmore.runs import Run
from flashmore.training.dataset import Dataset, ItemDataset, TextDataset
from flashmore.training.memory import require_memory_for_items

CONTEXT = 256
"""Default window length."""
Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Corpus:
    """Data that has been read and measured, but not yet encoded or written."""

    split: Split
    """The items of each part; all empty for a long text."""
    vocabulary: Vocabulary
    """The characters; ids start at 0 for a long text, which has no BOS or EOS."""
    text: LongText | None
    """None for items."""
    vocab_size: int
    """Vocabulary size V of the model."""
    block_size: int
    """Context length T: the longest item plus BOS, or a window."""


def read_corpus(config: DataConfig) -> Corpus:
    """Read the file once.

    Raises:
        DataError, ConfigError: see `read_words`, `split_words` and `read_long_text`.
    """
    if config.mode == "text":
        block_size = config.block_size or CONTEXT
        text, vocabulary, vocab_size = read_long_text(
            config.file, config.encoding, config.split, block_size, config.vocab_size
        )
        return Corpus(Split((), (), (), None), vocabulary, text, vocab_size, block_size)
    words = read_words(config.file, config.encoding)
    split = split_words(words, config.split, config.split_seed)
    vocabulary = Vocabulary.from_items(words.items)
    return Corpus(split, vocabulary, None, vocabulary.size, max(map(len, words.items)) + 1)


class Parts(Protocol):
    """The parts of a run's data, each encoded on demand."""

    def part(self, name: Part) -> Dataset | None:
        """One part; None if it is empty."""

    def test_without_train(self) -> Dataset | None:
        """The test items that are not in the training part; None if the split cannot leak."""

    def describe(self) -> str:
        """Human-readable sizes of the parts."""


class ItemParts:
    """Items, one per line."""

    def __init__(
        self, split: Split, vocabulary: Vocabulary, block_size: int, config: TrainConfig, device: torch.device
    ) -> None:
        self.split, self.vocabulary, self.block_size = split, vocabulary, block_size
        self.config, self.device = config, device

    def part(self, name: Part) -> ItemDataset | None:
        """As in `Parts`."""
        return self._encoded(getattr(self.split, name))

    def test_without_train(self) -> ItemDataset | None:
        """As in `Parts`."""
        if self.split.leak_share is None:
            return None
        known = set(self.split.train)
        return self._encoded(tuple(item for item in self.split.test if item not in known))

    def describe(self) -> str:
        """As in `Parts`."""
        return _listed({name: len(getattr(self.split, name)) for name in ("train", "validation", "test")})

    def _encoded(self, items: tuple[str, ...]) -> ItemDataset | None:
        if not items:
            return None
        require_memory_for_items(len(items), self.block_size)
        sequences = encode_items(items, self.vocabulary, self.block_size, self.device)
        return ItemDataset(sequences, self.config.batch_size, self.config.seed)


class TextParts:
    """One long text, each part in windows."""

    def __init__(
        self, text: LongText, ids: Ids, block_size: int, config: TrainConfig, device: torch.device
    ) -> None:
        self.text, self.ids, self.block_size = text, ids, block_size
        self.config, self.device = config, device

    def part(self, name: Part) -> TextDataset | None:
        """As in `Parts`."""
        start, stop = getattr(self.text.parts, name)
        if start == stop:
            return None
        windows = Windows(self.ids, (start, stop), self.block_size, self.device)
        return TextDataset(windows, self.config.batch_size, self.config.seed)

    def test_without_train(self) -> None:
        """As in `Parts`: no window straddles two parts."""

    def describe(self) -> str:
        """As in `Parts`."""
        sizes = {name: stop - start for name, (start, stop) in vars(self.text.parts).items()}
        return f"{_listed(sizes)} characters in windows of {self.block_size:,}"


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size:,} {name}" for name, size in sizes.items())


def open_parts(run: Run, config: TrainConfig, device: torch.device) -> Parts:
    """Open the data of a run; a damaged token file of a long text is rebuilt.

    Raises:
        DataError: the source of the ids is needed, but missing or changed.
        StorageError: a disk operation failed.
    """
    if run.text is None:
        return ItemParts(run.split, run.vocabulary, run.model.block_size, config, device)
    with disk_errors(f"to keep the ids of the text in {run.path}", run.path):
        ids = run.text.ids(run.path, run.vocabulary)
    return TextParts(run.text, ids, run.model.block_size, config, device)


def training_part(parts: Parts) -> Dataset:
    """The training part.

    Raises:
        RunError: it is empty, so the run was altered.
    """
    train = parts.part("train")
    if train is None:
        raise RunError("something to train on", "an empty training part", INTACT)
    return train


def example_data(
    corpus: Corpus, config: TrainConfig, model_config: ModelConfig, device: torch.device
) -> Dataset:
    """Data for timing steps before the run's folder exists: the items, or random ids for a text."""
    if corpus.text is None:
        parts = ItemParts(corpus.split, corpus.vocabulary, corpus.block_size, config, device)
        return training_part(parts)
    size = 16 * (model_config.block_size + 1)
    ids = np.random.default_rng(0).integers(0, model_config.vocab_size, size=size).astype(np.uint16)
    windows = Windows(ids, (0, size), model_config.block_size, device)
    return TextDataset(windows, config.batch_size, config.seed)
