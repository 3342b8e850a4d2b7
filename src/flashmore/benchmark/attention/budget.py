"""Time and memory budgets: what would exceed them is left out before it runs."""

import math
from collections.abc import Iterable

from flashmore.benchmark.attention.plan import Shape
from flashmore.measuring.measure import Clock

SHARE_OF_FREE = 0.8
"""Share of the free memory to use; the rest is for other processes."""


class TimeBudget:
    """Time for a list of shapes: each gets a share, and unused time goes to later ones."""

    def __init__(self, seconds: float, shapes: Iterable[Shape], clock: Clock) -> None:
        self.clock = clock
        self.end = clock() + seconds
        self._ahead = [_weight(shape) for shape in shapes]

    def left(self) -> float:
        """Remaining seconds of the budget; negative if exceeded."""
        return self.end - self.clock()

    def next_share(self) -> float:
        """Seconds for the next shape of the list."""
        share = self.left() * self._ahead[0] / sum(self._ahead)
        del self._ahead[0]
        return max(0.0, share)


def _weight(shape: Shape) -> float:
    # Work grows with T², but short shapes need repetitions: a compromise between equal and T² shares.
    return shape.T * math.sqrt(shape.pairs * shape.D)
