"""Character n-grams with interpolated Kneser–Ney smoothing: a baseline, and soft targets for training.

Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 4.1.6.
Shape letters: N items, T positions, P positions of all items, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from flashmore.data.batches import IGNORE, Sequences

AT_ONCE = 2**20
"""Probabilities computed together, which bounds the memory for intermediate results to about 50 MB."""
LONGEST = 7
"""Highest order; a model of order n sees n - 1 characters."""


@dataclass(frozen=True)
class _Counts:
    """The counts of one order: how often a character follows a context.

    An entry is numbered context · V + character; contexts are numbered from 0.
    """

    entries: Tensor
    """(E,) int64, sorted."""
    counts: Tensor
    """(E,) int64."""
    starts: Tensor
    """(C + 1,) int64: the first entry of each context."""
    totals: Tensor
    """(C,) int64: the sum of each context's counts."""
    discount: float
    """n₁ / (n₁ + 2 n₂): n₁ entries have a count of 1, n₂ one of 2."""

    @classmethod
    def of(cls, entries: Tensor, counts: Tensor, contexts: int, vocab_size: int) -> Self:
        context = entries // vocab_size
        starts = torch.searchsorted(context, torch.arange(contexts + 1, device=context.device))
        totals = counts.new_zeros(contexts).index_add_(0, context, counts)
        once, twice = (int((counts == times).sum()) for times in (1, 2))
        return cls(entries, counts, starts, totals, once / (once + 2 * twice) if once else 0.5)

    def of_entries(self, entries: Tensor) -> Tensor:
        """The counts of entries (P,), 0 for those that do not occur."""
        places = torch.searchsorted(self.entries, entries).clamp_(max=len(self.entries) - 1)
        return torch.where(self.entries[places] == entries, self.counts[places], 0)

    def kinds(self, contexts: Tensor) -> Tensor:
        """How many different characters follow each of the contexts (P,)."""
        return self.starts[contexts + 1] - self.starts[contexts]


@dataclass(frozen=True)
class NgramLoss:
    """The best order on held-out items.

    Raises:
        ValueError: values that no n-gram can have.
    """

    order: int
    loss: float
    """Nats per character, EOS included."""

    def __post_init__(self) -> None:
        if not (1 <= self.order <= LONGEST and 0 <= self.loss < math.inf):
            raise ValueError(f"order {self.order}, loss {self.loss}")


class Ngrams:
    """Models of the orders 1 to `LONGEST`.

    The highest order of a model counts occurrences, the lower ones the contexts that a character follows.

    Args:
        items: the training items.
        vocab_size: V, EOS included.
    """

    def __init__(self, items: Sequences, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        history, following = _positions(items, vocab_size)
        self._following = following
        self._keys: list[Tensor] = []
        contexts = torch.zeros_like(following)
        self._contexts = [contexts]
        for characters in history:
            keys, contexts = torch.unique(self._key(contexts, characters), return_inverse=True)
            self._keys.append(keys)
            self._contexts.append(contexts)
        entries = [torch.unique(self._entry(each), return_counts=True) for each in self._contexts]
        sizes = (1, *map(len, self._keys))
        self._occurrences = [
            _Counts.of(found, counts, size, vocab_size)
            for (found, counts), size in zip(entries, sizes, strict=True)
        ]
        self._continuations = []
        for keys, (longer, _), size in zip(self._keys, entries[1:], sizes, strict=False):
            shorter = keys[longer // vocab_size] // (vocab_size + 1)
            found, counts = torch.unique(shorter * vocab_size + longer % vocab_size, return_counts=True)
            self._continuations.append(_Counts.of(found, counts, size, vocab_size))

    def best(self, held_out: Sequences) -> NgramLoss:
        """The order with the lowest loss."""
        history, following = _positions(held_out, self.vocab_size)
        contexts = torch.zeros_like(following)
        shorter = torch.full(following.shape, 1 / self.vocab_size, dtype=torch.float64)
        losses = []
        for length in range(LONGEST):
            top, lower = (
                _mixed(counts, contexts, following, shorter, self.vocab_size)
                for counts in (self._occurrences[length], self._continuations[length])
            )
            losses.append(-top.log().mean().item())
            shorter = lower
            keys, key = self._keys[length], self._key(contexts, history[length])
            places = torch.searchsorted(keys, key).clamp_(max=len(keys) - 1)
            contexts = torch.where((contexts >= 0) & (keys[places] == key), places, -1)
        order = min(range(LONGEST), key=losses.__getitem__)
        return NgramLoss(order + 1, losses[order])

    def left_out(self, order: int) -> Tensor:
        """The distribution at every training position as if that position were not among the counts.

        Args:
            order: the order of the model, at most `LONGEST`.

        Returns:
            (P, V) float32, in the order of the items' characters, each item's EOS included.
        """
        every = torch.arange(len(self._following), device=self._following.device)
        return torch.cat(
            [self._left_out(some, order) for some in torch.split(every, max(1, AT_ONCE // self.vocab_size))]
        )

    def _left_out(self, positions: Tensor, order: int) -> Tensor:
        V, own = self.vocab_size, self._following[positions]
        result = own.new_full((len(own), V), 1 / V, dtype=torch.float32)
        for length in range(order):
            contexts = self._contexts[length][positions]
            if length == order - 1:
                counts, removed = self._occurrences[length], torch.ones_like(own)
            else:  # an occurrence is all that makes its context count where it is the only one
                longer = self._contexts[length + 1][positions] * V + own
                counts = self._continuations[length]
                removed = (self._occurrences[length + 1].of_entries(longer) == 1).long()
            kinds = counts.kinds(contexts)
            totals = counts.totals[contexts] - removed
            gone = removed * (counts.of_entries(contexts * V + own) == 1)
            share = counts.discount * (kinds - gone) / totals.clamp(min=1)
            result *= torch.where(totals > 0, share, 1.0).to(result)[:, None]
            rows = torch.repeat_interleave(torch.arange(len(own), device=own.device), kinds)
            within = torch.arange(len(rows), device=own.device) - (kinds.cumsum(0) - kinds)[rows]
            places = counts.starts[contexts[rows]] + within
            characters = counts.entries[places] % V
            left = counts.counts[places] - removed[rows] * (characters == own[rows])
            discounted = (left - counts.discount).clamp(min=0) / totals.clamp(min=1)[rows]
            result.index_put_((rows, characters), discounted.to(result), accumulate=True)
        return result

    def _key(self, contexts: Tensor, characters: Tensor) -> Tensor:
        """A number for each context that is longer by a character; V stands for the time before BOS."""
        return contexts * (self.vocab_size + 1) + characters

    def _entry(self, contexts: Tensor) -> Tensor:
        return contexts * self.vocab_size + self._following


def _positions(items: Sequences, vocab_size: int) -> tuple[list[Tensor], Tensor]:
    """The characters before each position, the last first, and the one that follows: each (P,) int64."""
    real = items.targets != IGNORE
    ids = items.ids.long()
    history = []
    for _ in range(LONGEST):
        history.append(ids[real])
        ids = torch.nn.functional.pad(ids[:, :-1], (1, 0), value=vocab_size)
    return history, items.targets[real].long()


def _mixed(counts: _Counts, contexts: Tensor, following: Tensor, shorter: Tensor, vocab_size: int) -> Tensor:
    """The probabilities (P,) of characters after contexts, -1 for unseen ones, given the shorter ones."""
    known = contexts.clamp(min=0)
    total = counts.totals[known]
    own = (counts.of_entries(known * vocab_size + following) - counts.discount).clamp(min=0)
    mixed = (own + counts.discount * counts.kinds(known) * shorter) / total
    return torch.where(contexts >= 0, mixed, shorter)
