"""Character n-grams with interpolated Kneser–Ney smoothing: a baseline for the losses of small lists.

Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 4.1.6.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 7
"""Highest order; a model of order n sees n - 1 characters."""
BOS, EOS = "\x02", "\x03"
"""Characters that no item holds."""


class _Level:
    """The counts of one order, discounted by n₁ / (n₁ + 2 n₂): n₁ entries occur once, n₂ twice."""

    def __init__(self, counts: Counter[tuple[str, str]]) -> None:
        self.counts = counts
        self.totals: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        for (context, _), count in counts.items():
            self.totals[context] += count
            self.kinds[context] += 1
        once, twice = (sum(count == times for count in counts.values()) for times in (1, 2))
        self.discount = once / (once + 2 * twice) if once else 0.5

    def mixed(self, context: str, character: str, shorter: float) -> float:
        """The probability after a context, given the one after a context shorter by a character."""
        total = self.totals[context]
        if total == 0:
            return shorter
        own = max(self.counts[context, character] - self.discount, 0)
        return (own + self.discount * self.kinds[context] * shorter) / total


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
        vocab_size: number of different characters, EOS included.
    """

    def __init__(self, items: Sequence[str], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        found: list[Counter[tuple[str, str]]] = [Counter() for _ in range(LONGEST + 1)]
        for item in items:
            text = BOS * LONGEST + item + EOS
            for end in range(LONGEST, len(text)):
                for length, counts in enumerate(found):
                    counts[text[end - length : end], text[end]] += 1
        self.occurrences = [_Level(counts) for counts in found[:LONGEST]]
        self.contexts = [
            _Level(Counter((context[1:], character) for context, character in counts)) for counts in found[1:]
        ]

    def probabilities(self, context: str, character: str) -> list[float]:
        """The probability of a character under each order, after `LONGEST` characters or more."""
        shorter, result = 1 / self.vocab_size, []
        for length, (top, lower) in enumerate(zip(self.occurrences, self.contexts, strict=True)):
            seen = context[len(context) - length :]
            result.append(top.mixed(seen, character, shorter))
            shorter = lower.mixed(seen, character, shorter)
        return result

    def best(self, held_out: Sequence[str]) -> NgramLoss:
        """The order with the lowest loss."""
        totals, characters = [0.0] * LONGEST, 0
        for item in held_out:
            text = BOS * LONGEST + item + EOS
            for end in range(LONGEST, len(text)):
                for order, p in enumerate(self.probabilities(text[end - LONGEST : end], text[end])):
                    totals[order] -= math.log(p)
                characters += 1
        order = min(range(LONGEST), key=totals.__getitem__)
        return NgramLoss(order + 1, totals[order] / characters)
