"""Training and evaluation batches of items or one long text, with the same methods.

Shapes: B batch, T positions, N tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from flashmore.backends.packed import Segments
from flashmore.data.batches import (
    IGNORE,
    MOST_EVALUATED,
    BatchOrder,
    MixedOrder,
    Sequences,
    StoredSequences,
    Windows,
)
from flashmore.models.ngram import Ngrams

SMOOTHING_ORDER = 5
"""Order of the n-grams that give soft targets."""
Form = Literal["padded", "trimmed", "packed"]
"""Rows padded to the context; rows padded to the longest item of the batch; or no padding."""
Slice = tuple[int, int]
"""The number of a slice of a batch, from 0, and how many there are; all have the same number of rows."""
WHOLE: Slice = (0, 1)


@dataclass(frozen=True)
class Batch:
    """The inputs and targets of a step."""

    ids: Tensor
    """(B, T) int64, or (N,) for packed tokens."""
    targets: Tensor
    """The same shape, `IGNORE` at padding."""
    segments: Segments | None = None
    """Item boundaries of packed tokens; None for rows."""
    soft_targets: Tensor | None = None
    """Soft targets: (…, V) float32, a distribution for each target, 0 at padding; None for none."""
    weights: Tensor | None = None
    """In an evaluation: the weights of the rows, (B,) float64 on the CPU; None if they are equal. A training
    batch needs none, because its items are drawn by their weights."""
    characters: Tensor | None = None
    """For a slice: number of real positions in the whole batch, a scalar; None if this is a whole batch."""
    dropout_seed: int | None = None
    """Seed of dropout; None for a model without."""

    @property
    def extra(self) -> tuple[Segments, ...]:
        """Arguments of the model's forward after the ids."""
        return () if self.segments is None else (self.segments,)

    @property
    def fixed_sizes(self) -> tuple[int, ...]:
        """Sizes shared by every batch of a run: (rows, longest) for packed tokens, (B, T) for rows."""
        if self.segments is None:
            return tuple(self.ids.shape)
        return self.segments.rows, self.segments.longest

    def leave_length_open(self) -> None:
        """Mark the number of tokens as dynamic for torch.compile."""
        if self.segments is not None:
            soft = () if self.soft_targets is None else (self.soft_targets,)
            for tensor in (self.ids, self.targets, self.segments.positions, self.segments.places, *soft):
                torch._dynamo.mark_dynamic(tensor, 0)


def ngram_targets(items: Sequences, vocab_size: int, sampled: int = 0, weight: float = 1.0) -> Tensor:
    """For every position of every item, the distribution of n-grams that did not count it: (P, V).

    Args:
        sampled: how many of the items, the last ones, were sampled from the n-grams and are not counted.
        weight: of soft targets in the loss; the rest is the character that follows. For sampled items the sum
            of both has to be the distribution, so the character is subtracted, which can make them negative.
    """
    counted = len(items.lengths) - sampled
    ngrams = Ngrams(items[:counted], vocab_size)
    own = ngrams.left_out(SMOOTHING_ORDER)
    if not sampled:
        return own
    others = items[counted:]
    real = others.targets != IGNORE
    after = ngrams.after(others.ids.long(), SMOOTHING_ORDER)[real]  # (P, V)
    following = F.one_hot(others.targets[real].long(), vocab_size)
    return torch.cat((own, (after - (1 - weight) * following) / weight))


class ItemDataset:
    """Items, one sequence each.

    Args:
        batch_size: items per training batch.
        seed: seed of the training order.
        weights: of the items; None if they are equal.
        soft: makes a distribution, (P, V), for each of the P positions with a target, one item after another,
            for batches with soft targets; None for batches without. Called once.
        sampled: how many of the sequences, the last ones, were sampled from a model.
        share: of these in a batch.
    """

    def __init__(
        self,
        sequences: Sequences | StoredSequences,
        batch_size: int = 1,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        soft: Callable[[Sequences], Tensor] | None = None,
        sampled: int = 0,
        share: float = 0.0,
    ) -> None:
        self.sequences = sequences
        self.soft = soft
        count = len(sequences.lengths) - sampled
        self.order = (
            MixedOrder(count, sampled, batch_size, share, seed)
            if sampled
            else BatchOrder(count, batch_size, seed, weights)
        )
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float64, device="cpu")

    @property
    def tokens_a_batch(self) -> float:
        """Real positions in a training batch, on average."""
        lengths, weights = self.sequences.lengths.cpu().double(), self.weights
        mean = lengths.mean() if weights is None else lengths @ weights / weights.sum()
        return mean.item() * self.order.batch_size

    def batch(self, step: int, form: Form = "padded", part: Slice = WHOLE) -> Batch:
        """A slice of the batch of a step: a pure function of the seed, the step and the slice.

        Args:
            step: counted from 0.
            form: see `Form`.
            part: which slice; their number must divide the batch size.
        """
        sequences = self.sequences
        indices = self.order.indices(step).to(sequences.lengths.device)
        ours = rows_of(len(indices), part)
        ids, targets = sequences.take(indices[ours])
        lengths = sequences.lengths.index_select(0, indices).long().to(ids.device)
        characters = None if part == WHOLE else lengths.sum()
        indices, lengths = indices[ours], lengths[ours]
        batch = replace(shaped(ids, targets, lengths, form), characters=characters)
        if self.soft is None:
            return batch
        assert isinstance(sequences, Sequences)
        firsts = self._first_targets.index_select(0, indices)
        within = torch.arange(sequences.ids.size(1), device=lengths.device)  # (T,)
        rows = (firsts[:, None] + within)[within < lengths[:, None]]  # one item after another
        soft = self._soft_targets.index_select(0, rows)
        if batch.segments is None:
            padded = soft.new_zeros((*batch.targets.shape, soft.size(1)))
            padded[batch.targets != IGNORE] = soft
            soft = padded
        return replace(batch, soft_targets=soft)

    @cached_property
    def _first_targets(self) -> Tensor:
        """The row of each item's first position among the soft targets, (N,)."""
        lengths = self.sequences.lengths
        return lengths.cumsum(0) - lengths

    @cached_property
    def _soft_targets(self) -> Tensor:
        assert self.soft is not None
        assert isinstance(self.sequences, Sequences)
        return self.soft(self.sequences)

    def evaluation(self, rows: Callable[[int], int]) -> Iterator[Callable[[], Batch]]:
        """All data once, in batches of rows, each to be called: a rank makes only its own.

        Items are sorted by length and padded to the longest of their batch. No item is shorter than half of
        that, so a single long item does not pad many short ones. Of a part with more than `MOST_EVALUATED`
        positions, it is a fixed random sample of items.

        Args:
            rows: maps a row length to the number of rows that fit in memory.
        """
        lengths, items = self.sequences.lengths.cpu(), torch.arange(len(self.sequences.lengths))
        if (positions := int(lengths.sum())) > MOST_EVALUATED:
            count = max(1, len(items) * MOST_EVALUATED // positions)
            drawn = np.random.default_rng(0).choice(len(items), size=count, replace=False)
            items = torch.from_numpy(np.sort(drawn))
        lengths, order = lengths[items].sort(descending=True, stable=True)
        order = items[order]
        start = 0
        while start < len(order):
            longest = int(lengths[start])
            at_least_half = int((2 * lengths >= longest).sum())
            stop = min(at_least_half, start + rows(longest))
            yield partial(self._rows, order[start:stop], longest)
            start = stop

    def _rows(self, indices: Tensor, longest: int) -> Batch:
        ids, targets = self.sequences.take(indices)
        weights = None if self.weights is None else self.weights[indices]
        return Batch(ids[:, :longest], targets[:, :longest], weights=weights)

    def to(self, device: torch.device) -> "ItemDataset":
        """The same on another device, for items in memory."""
        assert isinstance(self.sequences, Sequences)
        moved = ItemDataset(self.sequences.to(device), soft=self.soft)
        moved.order, moved.weights = self.order, self.weights
        return moved


class TextDataset:
    """Windows of one part of a long text; they have no padding, so every form is the same.

    Args:
        batch_size: windows per training batch.
        seed: seed of the training windows' start positions.
    """

    def __init__(self, windows: Windows, batch_size: int = 1, seed: int = 0) -> None:
        self.windows, self.batch_size, self.seed = windows, batch_size, seed

    @property
    def tokens_a_batch(self) -> float:
        """As in `ItemDataset`."""
        return float(self.windows.context * self.batch_size)

    def batch(
        self,
        step: int,
        form: Form = "padded",  # noqa: ARG002 - there is nothing to cut off
        part: Slice = WHOLE,
    ) -> Batch:
        """As in `ItemDataset`."""
        starts = self.windows.random_starts(step, self.batch_size, self.seed)
        ids, targets = self.windows.at(starts[rows_of(self.batch_size, part)])
        characters = None if part == WHOLE else torch.tensor(ids.size(1) * self.batch_size).to(ids.device)
        return Batch(ids, targets, characters=characters)

    def evaluation(self, rows: Callable[[int], int]) -> Iterator[Callable[[], Batch]]:
        """As in `ItemDataset`."""
        starts, at_once = self.windows.covering, rows(self.windows.context)
        for first in range(0, len(starts), at_once):
            yield partial(self._windows, starts[first : first + at_once])

    def _windows(self, starts: npt.NDArray[np.int64]) -> Batch:
        return Batch(*self.windows.at(starts))


Dataset = ItemDataset | TextDataset
"""One part of the data, for one model on one device."""


def rows_of(rows: int, part: Slice) -> slice:
    """The rows of a batch that are in a slice of it."""
    number, count = part
    return slice(number * rows // count, (number + 1) * rows // count)


def shaped(ids: Tensor, targets: Tensor, lengths: Tensor, form: Form) -> Batch:
    """A batch in the form asked for.

    Args:
        ids: rows (B, T) int64.
        targets: (B, T) int64.
        lengths: (B,) int64, the real positions of each row.
        form: see `Form`.
    """
    if form == "padded":
        return Batch(ids, targets)
    if form == "trimmed":
        T = int(lengths.max())
        return Batch(ids[:, :T], targets[:, :T])
    segments = Segments.of(lengths, ids.size(1))
    ids, targets = (rows.flatten().index_select(0, segments.places) for rows in (ids, targets))  # (N,)
    return Batch(ids, targets, segments)
