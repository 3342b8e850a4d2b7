"""Arrays on which formulas are compared: they tell small constants, axes and spreads apart."""

from typing import Any

import numpy as np

_SHAPES = {2: (7, 5), 3: (3, 7, 5), 4: (2, 3, 7, 5), 5: (2, 1, 3, 7, 5)}


def _numbers(shape: tuple[int, ...]) -> Any:
    count = int(np.prod(shape))
    return np.sin(np.arange(count, dtype=np.float64) ** 2 * 0.731 + 0.4).reshape(shape) + 0.1


ROWS_OF_MANY_SCALES = {
    rank: _numbers(shape) * np.array([1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e2, 1e-6])[:, None]
    for rank, shape in _SHAPES.items()
}
"""Rows whose variance is above, near and below every usual eps."""
ROWS_OF_MANY_SPREADS = {
    rank: _numbers(shape) * np.array([1.0, 3.0, 10.0, 30.0, 60.0, 100.0, 300.0])[:, None]
    for rank, shape in _SHAPES.items()
}
"""Rows whose softmax comes near 0, so that a small number added to it shows."""
