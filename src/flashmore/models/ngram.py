"""Character n-grams with interpolated Kneser–Ney smoothing: a baseline, soft targets, and a generator.

Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 4.1.6.
Shape letters: N items, T positions, P positions of all items, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

import torch
from numpy.random import RandomState
from torch import Tensor, nn

from flashmore.data.batches import IGNORE, Sequences, encode_items
from flashmore.data.vocabulary import EOS, Vocabulary
from flashmore.models.config import ModelConfig

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
        shorter = torch.full(following.shape, 1 / self.vocab_size, dtype=torch.float64)
        losses = []
        for length, contexts in enumerate(self._contexts_of(history)):
            top, lower = (
                _mixed(counts, contexts, following, shorter, self.vocab_size)
                for counts in (self._occurrences[length], self._continuations[length])
            )
            losses.append(-top.log().mean().item())
            shorter = lower
        order = min(range(LONGEST), key=losses.__getitem__)
        return NgramLoss(order + 1, losses[order])

    def _contexts_of(self, history: Sequence[Tensor]) -> Iterator[Tensor]:
        """The contexts (P,) of the lengths 0 to `LONGEST` - 1 before positions; -1 for unseen ones."""
        contexts = torch.zeros_like(history[0])
        yield contexts
        for characters, keys in zip(history, self._keys[:-1], strict=False):
            key = self._key(contexts, characters)
            places = torch.searchsorted(keys, key).clamp_(max=len(keys) - 1)
            contexts = torch.where((contexts >= 0) & (keys[places] == key), places, -1)
            yield contexts

    def left_out(self, order: int) -> Tensor:
        """The distribution at every training position as if that position were not among the counts.

        Args:
            order: the order of the model, at most `LONGEST`.

        Returns:
            (P, V) float32, in the order of the items' characters, each item's EOS included.
        """
        V, every = self.vocab_size, torch.arange(len(self._following), device=self._following.device)
        parts = []
        for positions in torch.split(every, max(1, AT_ONCE // V)):
            own = self._following[positions]
            contexts = [each[positions] for each in self._contexts]
            # An occurrence is all that makes its context count where it is the only one.
            removed = [
                (self._occurrences[length + 1].of_entries(contexts[length + 1] * V + own) == 1).long()
                for length in range(order - 1)
            ]
            removed.append(torch.ones_like(own))
            parts.append(self._distributions(contexts[:order], own, removed))
        return torch.cat(parts)

    def left_out_loss(self, order: int) -> float:
        """Nats per character: the mean loss of `left_out`."""
        return -self.left_out(order).gather(1, self._following[:, None]).log().mean().item()

    def after(self, ids: Tensor, order: int) -> Tensor:
        """The distribution after every position of ids (N, T), each of which begins with BOS.

        Returns:
            (N, T, V) float32.
        """
        before = torch.stack(_shifted(ids, self.vocab_size)[: max(1, order - 1)]).flatten(1)
        return self._after(before, order).view(*ids.shape, self.vocab_size)

    def _after(self, before: Tensor, order: int) -> Tensor:
        """The distributions (P, V) after characters (order - 1, P), the last one first."""
        known, rows = torch.unique(before, dim=1, return_inverse=True)  # most occur often
        contexts = list(islice(self._contexts_of([*known]), order))
        nothing = torch.zeros_like(contexts[0])
        return self._distributions(contexts, nothing, [nothing] * order)[rows]

    def sample(self, order: int, count: int, context: int, numbers: RandomState) -> Tensor:
        """Sequences drawn from the model of an order, each until EOS.

        Args:
            count: how many to begin; those without EOS within the context are dropped.
            context: T.
            numbers: random numbers.

        Returns:
            (N, T) int64 on the CPU: the ids after BOS, then EOS to the end.
        """
        own = torch.from_numpy(numbers.random_sample((context, count)))
        ids = torch.full((context, count), EOS)
        going = torch.arange(count)  # (G,) those before EOS
        before = torch.full((max(1, order - 1), count), self.vocab_size)  # the last character first
        before[0] = EOS  # BOS has the same id
        for position, number in enumerate(own):
            sums = self._after(before, order).double().cumsum(-1)  # (G, V)
            drawn = torch.searchsorted(sums, number[going, None] * sums[:, -1:], right=True).squeeze(1)
            ids[position, going] = drawn.clamp_(max=self.vocab_size - 1)
            unfinished = drawn != EOS
            going, before = going[unfinished], torch.cat((drawn[None], before[:-1]))[:, unfinished]
            if not len(going):
                break
        ended = torch.ones(count, dtype=torch.bool).index_fill_(0, going, False)
        return ids.T[ended]

    def _distributions(self, contexts: list[Tensor], own: Tensor, removed: list[Tensor]) -> Tensor:
        """The distributions (P, V) after contexts of the lengths 0 to order - 1, -1 for unseen ones.

        `removed` (P,) is what to subtract from the count of `own` (P,) after each of them.
        """
        V = self.vocab_size
        result = own.new_full((len(own), V), 1 / V, dtype=torch.float32)
        tables = (*self._continuations[: len(contexts) - 1], self._occurrences[len(contexts) - 1])
        for counts, here, less in zip(tables, contexts, removed, strict=True):
            seen, known = here >= 0, here.clamp(min=0)
            kinds = torch.where(seen, counts.kinds(known), 0)
            totals = torch.where(seen, counts.totals[known] - less, 0)
            gone = less * (counts.of_entries(known * V + own) == 1)
            share = counts.discount * (kinds - gone) / totals.clamp(min=1)
            result *= torch.where(totals > 0, share, 1.0).to(result)[:, None]
            rows = torch.repeat_interleave(torch.arange(len(own), device=own.device), kinds)
            within = torch.arange(len(rows), device=own.device) - (kinds.cumsum(0) - kinds)[rows]
            places = counts.starts[known[rows]] + within
            characters = counts.entries[places] % V
            left = counts.counts[places] - less[rows] * (characters == own[rows])
            discounted = (left - counts.discount).clamp(min=0) / totals.clamp(min=1)[rows]
            result.index_put_((rows, characters), discounted.to(result), accumulate=True)
        return result

    def _key(self, contexts: Tensor, characters: Tensor) -> Tensor:
        """A number for each context that is longer by a character; V stands for the time before BOS."""
        return contexts * (self.vocab_size + 1) + characters

    def _entry(self, contexts: Tensor) -> Tensor:
        return contexts * self.vocab_size + self._following


def best_ngram(
    items: Sequence[str], held_out: Sequence[str], vocabulary: Vocabulary, config: ModelConfig
) -> tuple[Ngrams, NgramLoss]:
    """The n-grams of items, and the order with the lowest loss on others.

    Args:
        vocabulary, config: their characters, and the sizes of a model for both.
    """
    known, others = (encode_items(each, vocabulary, config.block_size, "cpu") for each in (items, held_out))
    ngrams = Ngrams(known, config.vocab_size)
    return ngrams, ngrams.best(others)


class NgramModel(nn.Module):
    """The n-gram of one order, as a model that generates.

    Args:
        ngrams: counts of the training items.
        order: its order, at most `LONGEST`.
    """

    def __init__(self, ngrams: Ngrams, order: int) -> None:
        super().__init__()
        self._ngrams, self._order = ngrams, order

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to log-probabilities (B, T, V), which are logits too."""
        return self._ngrams.after(ids, self._order).log()


def _shifted(ids: Tensor, blank: int) -> list[Tensor]:
    """Ids (N, T) and those 1 to `LONGEST` - 1 positions before them; `blank` before BOS."""
    shifted = [ids]
    while len(shifted) < LONGEST:
        shifted.append(torch.nn.functional.pad(shifted[-1][:, :-1], (1, 0), value=blank))
    return shifted


def _positions(items: Sequences, vocab_size: int) -> tuple[list[Tensor], Tensor]:
    """The characters before each position, the last first, and the one that follows: each (P,) int64."""
    real = items.targets != IGNORE
    return [each[real] for each in _shifted(items.ids.long(), vocab_size)], items.targets[real].long()


def _mixed(counts: _Counts, contexts: Tensor, following: Tensor, shorter: Tensor, vocab_size: int) -> Tensor:
    """The probabilities (P,) of characters after contexts, -1 for unseen ones, given the shorter ones."""
    known = contexts.clamp(min=0)
    total = counts.totals[known]
    own = (counts.of_entries(known * vocab_size + following) - counts.discount).clamp(min=0)
    mixed = (own + counts.discount * counts.kinds(known) * shorter) / total
    return torch.where(contexts >= 0, mixed, shorter)
