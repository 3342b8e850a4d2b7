"""The data of a run, items or one long text: read once and opened part by part."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from flashmore.config import DataConfig, TrainConfig
from flashmore.data.batches import StoredSequences, Windows, encode_items
from flashmore.data.items import Split, effective, read_words, split_words
from flashmore.data.long_text import LongText, read_long_text
from flashmore.data.overview import findings, shortened
from flashmore.data.prepared import Ids
from flashmore.data.stored_items import EVALUATED, OpenItems, Rows, StoredItems, read_stored_items
from flashmore.data.vocabulary import Vocabulary
from flashmore.errors import ConfigError, RunError
from flashmore.files import INTACT, disk_errors
from flashmore.generation.draw import random_numbers
from flashmore.models.ngram import Ngrams
from flashmore.runs import Run
from flashmore.training.dataset import SMOOTHING_ORDER, Dataset, ItemDataset, TextDataset, ngram_targets
from flashmore.training.distillation import kept_teachers, predictions
from flashmore.training.memory import require_memory_for_items

CONTEXT = 256
"""Default window length."""
SAMPLED = 20
"""Items that are sampled from n-grams for each training item, """
MOST_SAMPLED = 2**24
"""and the most numbers in the soft targets of the sampled ones, 64 MB."""
MOST_SMOOTHED = 2**26
"""Most numbers in the soft targets of a training part, 256 MB."""
EXAMINED = 200_000
"""Most items that are examined before training, which takes less than a second."""
PARTS = ("train", "validation", "test")


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
    stored: StoredItems | None = None
    """A prepared list, whose items are not in `split`."""
    opened: OpenItems | None = field(default=None, repr=False, compare=False)
    """Its items; None before they are opened."""
    notes: tuple[str, ...] = ()
    """Remarks for the user about how the file was read."""

    @property
    def items(self) -> int:
        """Number of training items."""
        return len(self.split.train) if self.opened is None else len(self.opened.train.starts)

    @property
    def positions(self) -> int:
        """Number of characters to predict in the training items, EOS included."""
        if self.opened is not None:
            return int(self.opened.train.lengths.sum(dtype=np.int64)) + self.items
        return sum(map(len, self.split.train)) + self.items

    @property
    def smoothable(self) -> bool:
        """Whether n-grams can give soft targets: of items in memory without weights, if all fit there."""
        in_memory = self.split.weights is None and self.stored is None
        return in_memory and self.positions * self.vocab_size <= MOST_SMOOTHED

    @property
    def context_gain(self) -> float:
        """By how much 5-grams have a lower loss than bigrams, in nats per character of the training items,
        each left out of the counts."""
        items = encode_items(self.split.train, self.vocabulary, self.block_size, "cpu")
        ngrams = Ngrams(items, self.vocab_size)
        return ngrams.left_out_loss(2) - ngrams.left_out_loss(SMOOTHING_ORDER)

    def sampled(self, items: tuple[str, ...], seed: int) -> list[str]:
        """Items sampled from the n-grams of others, for distillation (Kim and Rush 2016,
        https://arxiv.org/abs/1606.07947, section 3.2, with an n-gram model as the teacher)."""
        V, T = self.vocab_size, self.block_size
        count = max(1, min(SAMPLED * len(items), MOST_SAMPLED // (T * V)))
        ngrams = Ngrams(encode_items(items, self.vocabulary, T, "cpu"), V)
        ids = ngrams.sample(SMOOTHING_ORDER, count, T, random_numbers(seed))
        return self.vocabulary.decode_rows(ids.numpy())

    def datasets(
        self,
        config: TrainConfig,
        device: torch.device,
        ids: Ids | None = None,
        teachers: Sequence[Run] = (),
    ) -> "Datasets":
        """Encode the parts.

        Args:
            ids: of a long text; None means a few random ids, for timing steps before the run's folder exists.
            teachers: as `open_teachers` gives them; for timing steps without them, n-grams take their place.

        Raises:
            DataError: the items would exceed the free memory.
            RunError: nothing to train on, so the run was altered.
        """
        batch_size, seed = config.batch_size, config.seed

        def encoded(items: tuple[str, ...], part: str) -> Dataset | None:
            if not items:
                return None
            require_memory_for_items(len(items), self.block_size)
            soft = None
            sampled = self.sampled(items, seed) if part == "train" and config.ngram_items else []
            if part == "train" and config.soft_weight:
                asked = config.teacher_option or "--ngram-smoothing"
                if not self.smoothable:
                    raise ConfigError(
                        f"{asked} with at most {MOST_SMOOTHED:,} positions times vocabulary entries",
                        f"{self.positions:,} times {self.vocab_size:,}",
                        f"no {asked}, or fewer items",
                    )
                soft = partial(
                    ngram_targets,
                    vocab_size=self.vocab_size,
                    sampled=len(sampled),
                    weight=config.soft_weight,
                )
                if teachers:
                    soft = partial(predictions, teachers=teachers)
            sequences = encode_items((*items, *sampled), self.vocabulary, self.block_size, device)
            weights: tuple[float, ...] | None = getattr(split.weights, part, None)
            return ItemDataset(sequences, batch_size, seed, weights, soft, len(sampled), config.ngram_items)

        def windows(ids: Ids, bounds: tuple[int, int]) -> Dataset | None:
            if bounds[0] == bounds[1]:
                return None
            return TextDataset(Windows(ids, bounds, self.block_size, device, remap), batch_size, seed)

        def rows(opened: OpenItems, stored: StoredItems, part: str) -> Dataset | None:
            found: Rows = getattr(opened, part)
            if part != "train":
                found = Rows(found.starts[:EVALUATED], found.lengths[:EVALUATED])
            if not len(found.starts):
                return None
            sequences = StoredSequences(opened.ids, found, stored.remap, self.block_size, device)
            return ItemDataset(sequences, batch_size, seed)

        split, unleaked = self.split, None
        if self.stored is not None:
            if config.soft_weight:
                asked = config.teacher_option or f"--ngram-smoothing {config.ngram_smoothing:g}"
                valid = "omit it" if config.distilled else "--ngram-smoothing 0"
                raise ConfigError("no soft targets for a prepared list", asked, valid)
            if config.ngram_items:
                asked = f"--ngram-items {config.ngram_items:g}"
                raise ConfigError("no sampled items for a prepared list", asked, "--ngram-items 0")
            opened = self.opened or self.stored.open()
            found = {name: rows(opened, self.stored, name) for name in PARTS}
            described = ", ".join(f"{len(getattr(opened, name).starts):,} {name}" for name in PARTS)
            described += f" items on disk, of which {EVALUATED:,} at most are evaluated"
        elif self.text is None:
            found = {name: encoded(getattr(split, name), name) for name in PARTS}
            if split.leak_share is not None:
                known = set(split.train)
                unleaked = encoded(tuple(item for item in split.test if item not in known), "unleaked")
            described = ", ".join(f"{len(getattr(split, name)):,} {name}" for name in PARTS)
            described += " items"
        else:
            bounds = {name: getattr(self.text.parts, name) for name in PARTS}
            described = ", ".join(f"{stop - start:,} {name}" for name, (start, stop) in bounds.items())
            described += f" characters in windows of {self.block_size:,}"
            remap = self.text.remap
            if ids is None:
                size = 16 * (self.block_size + 1)
                ids = np.random.default_rng(0).integers(0, self.vocab_size, size=size).astype(np.uint16)
                bounds = {"train": (0, size), "validation": (0, 0), "test": (0, 0)}
            found = {name: windows(ids, part) for name, part in bounds.items()}
        if found["train"] is None:
            raise RunError("training data", "an empty training part", INTACT)
        return Datasets(found["train"], found["validation"], found["test"], unleaked, described)


@dataclass(frozen=True)
class Datasets:
    """The encoded parts of a run's data, on its device."""

    train: Dataset
    validation: Dataset | None
    """None if it is empty, as for the test part."""
    test: Dataset | None
    unleaked: Dataset | None
    """The test items that are not in the training part; None if the split cannot leak."""
    described: str
    """Human-readable sizes of the parts."""


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
    if config.file is not None and config.file.suffix.lower() == ".bin":
        stored = read_stored_items(config.file, config.split, config.split_seed)
        if stored is not None:
            if config.column is not None:
                raise ConfigError("no --column for a prepared list", config.column, "omit --column")
            opened, vocabulary, none = stored.open(), stored.vocabulary, Split((), (), (), None)
            return Corpus(none, vocabulary, None, vocabulary.size, opened.longest + 1, stored, opened)
    words = read_words(config.file, config.encoding, config.column, config.weight)
    split = split_words(words, config.split, config.split_seed)
    notes = words.notes
    if len(words.items) <= EXAMINED:
        notes += tuple(
            f"{finding.what} ({finding.count:,}): {shortened(finding.examples)}"
            for finding in findings(words, split)
        )
    else:
        notes += (f"more than {EXAMINED:,} items are not checked for likely mistakes; use `flashmore look`",)
    if split.weights is not None:
        alike = ", ".join(
            f"{effective(part):,.0f} {name}" for name, part in vars(split.weights).items() if part
        )
        notes += (f"losses are weighted means; effective sample sizes: {alike}",)
    vocabulary = Vocabulary.from_items(words.items)
    longest = max(map(len, words.items))
    return Corpus(split, vocabulary, None, vocabulary.size, longest + 1, notes=notes)


def open_datasets(run: Run, config: TrainConfig, device: torch.device) -> Datasets:
    """Open the data of a run; a damaged token file of a long text is rebuilt.

    Raises:
        DataError: the source of the ids is needed, but missing or changed.
        StorageError: a disk operation failed.
    """
    ids = None
    if run.text is not None:
        with disk_errors(f"to keep the ids of the text in {run.path}", run.path):
            ids = run.text.ids(run.path, run.vocabulary)
    stored = run.settings.stored
    corpus = Corpus(run.split, run.vocabulary, run.text, run.model.vocab_size, run.model.block_size, stored)
    return corpus.datasets(config, device, ids, kept_teachers(run))
