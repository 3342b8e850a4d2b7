"""How much time and memory a measurement may take: what would not fit is left out before it runs."""

import math
from collections.abc import Iterable

from flashmore.benchmark.attention.plan import Shape
from flashmore.measuring.measure import Clock

SHARE_OF_FREE = 0.8
"""Of the free memory; the rest is for everybody else on the machine."""


class TimeBudget:
    """Seconds for a list of shapes: each gets a share, and what it leaves over goes to those after it."""

    def __init__(self, seconds: float, shapes: Iterable[Shape], clock: Clock) -> None:
        self.clock = clock
        self.end = clock() + seconds
        self._ahead = [_weight(shape) for shape in shapes]

    def left(self) -> float:
        """Seconds until the budget is spent; below 0 where it is overspent."""
        return self.end - self.clock()

    def next_share(self) -> float:
        """Seconds for the next shape of the list."""
        share = self.left() * self._ahead[0] / sum(self._ahead)
        del self._ahead[0]
        return max(0.0, share)


def _weight(shape: Shape) -> float:
    # Work grows with T². Long shapes would take everything, short ones want repetitions: between the two.
    return shape.T * math.sqrt(shape.pairs * shape.D)
