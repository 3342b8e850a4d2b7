"""The batch of a step, in one of three forms: padded rows, trimmed rows, or packed tokens.

Shapes: B batch, T positions, N tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flashmore.backends.packed import Segments
from flashmore.data.batches import Sequences, take


@dataclass(frozen=True)
class Batch:
    """What a step learns from."""

    ids: Tensor
    """(B, T) int64, or (N,) for packed tokens."""
    targets: Tensor
    """The same shape, `IGNORE` where there is no character."""
    segments: Segments | None = None
    """Where the items lie among packed tokens; None for rows."""

    @property
    def extra(self) -> tuple[Segments, ...]:
        """What a model's forward takes after the ids."""
        return () if self.segments is None else (self.segments,)

    @property
    def fixed_sizes(self) -> tuple[int, ...]:
        """What is the same for every batch of a run: (rows, longest) of packed tokens, (B, T) of rows."""
        if self.segments is None:
            return tuple(self.ids.shape)
        return self.segments.rows, self.segments.longest

    def leave_length_open(self) -> None:
        """Tell torch.compile that the number of tokens differs from batch to batch."""
        if self.segments is not None:
            for tensor in (self.ids, self.targets, self.segments.positions, self.segments.places):
                torch._dynamo.mark_dynamic(tensor, 0)


def padded(sequences: Sequences, indices: Tensor) -> Batch:
    """Rows of the model's whole context."""
    return Batch(*take(sequences, indices))


def trimmed(sequences: Sequences, indices: Tensor) -> Batch:
    """Rows as long as the longest item among them: what is cut off is padding in every row."""
    ids, targets = take(sequences, indices)
    T = int(sequences.lengths[indices].max())
    return Batch(ids[:, :T], targets[:, :T])


def packed(sequences: Sequences, indices: Tensor) -> Batch:
    """The real positions alone, one item after the other."""
    ids, targets = take(sequences, indices)
    segments = Segments.of(sequences.lengths.index_select(0, indices), ids.size(1))
    return Batch(
        ids.flatten().index_select(0, segments.places),
        targets.flatten().index_select(0, segments.places),
        segments,
    )
