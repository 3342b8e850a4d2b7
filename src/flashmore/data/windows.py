"""Training and evaluation windows of a long text.

B windows, T positions.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flashmore.data.batches import IGNORE
from flashmore.data.items import parse_shares
from flashmore.data.tokens import Ids
from flashmore.errors import ConfigError, DataError

MOST_EVALUATED = 2**20
"""Most positions per evaluation, which bounds its time for large parts; smaller parts are read completely."""
_ORDER, _EVALUATION = 0, 1


@dataclass(frozen=True)
class Parts:
    """Consecutive ranges [start, stop) of train, validation and test in a text."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]


def cut_parts(count: int, shares: str, context: int, source: str) -> Parts:
    """Split a text of `count` ids by position; no window straddles two parts.

    Args:
        count: number of ids in the text.
        shares: percentages for train, validation and test, such as `80/10/10`.
        context: T; a part with a share must hold one window and the id after it.
        source: name of the text in messages.

    Raises:
        ConfigError: shares that are not three such numbers.
        DataError: a part with a share is too short for one window.
    """
    train, validation, _ = parts = parse_shares(shares)
    first, second = int(count * train / 100), int(count * (train + validation) / 100)
    cut = Parts((0, first), (first, second), (second, count))
    sizes = {name: stop - start for name, (start, stop) in vars(cut).items()}
    short = {
        name: size
        for (name, size), share in zip(sizes.items(), parts, strict=True)
        if share and size <= context
    }
    if short:
        found = f"{count:,} in all: " + ", ".join(f"{size:,} for {name}" for name, size in short.items())
        longest = min(size for size, share in zip(sizes.values(), parts, strict=True) if share) - 1
        shorter = f"--block-size {longest} or less, " if longest >= 1 else ""
        raise DataError(
            f"at least {context + 1:,} characters in each part of {source}, for --block-size {context}",
            found,
            f"{shorter}a longer text, or a --split with fewer parts such as 90/10/0",
        )
    return cut


class Windows:
    """Windows of T ids from one part of a text.

    Args:
        ids: (N,) uint16, all of the text, usually a memory map.
        part: [start, stop) of the part; it must hold a window and the id after it.
        context: T.
        device: the device of the batches.
    """

    def __init__(self, ids: Ids, part: tuple[int, int], context: int, device: torch.device) -> None:
        start, stop = part
        if not (0 <= start < stop <= len(ids) and stop - start > context >= 1):
            raise ConfigError(
                f"a part that holds a window of {context}", f"ids {start} to {stop}", "a longer part"
            )
        self.ids = np.asarray(ids)  # a plain view: indexing a memory map has Python overhead
        self.start, self.stop = start, stop
        self.context = context
        self.device = device

    def to(self, device: torch.device) -> "Windows":
        """The same with batches for another device."""
        return Windows(self.ids, (self.start, self.stop), self.context, device)

    def random(self, step: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
        """The batch of a step, drawn uniformly with replacement: a pure function of seed and step.

        Returns:
            ids (B, T) and targets (B, T), int64, on the device.
        """
        generator = np.random.default_rng((seed, _ORDER, step))
        starts = generator.integers(self.start, self.stop - self.context, size=batch)
        return self.at(starts)

    def at(self, starts: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Windows that start at these positions: ids (B, T) and targets (B, T), int64, on the device.

        Positions whose target is beyond the part have id 0 and target IGNORE.
        """
        offsets = np.arange(self.context + 1)
        places = starts[:, None] + offsets  # (B, T + 1)
        inside = places < self.stop
        window = np.where(inside, self.ids[np.minimum(places, self.stop - 1)], 0).astype(np.int64)
        targets = np.where(inside[:, 1:], window[:, 1:], IGNORE)
        ids = torch.from_numpy(window[:, :-1].copy()).to(self.device)
        return ids, torch.from_numpy(targets).to(self.device)

    @cached_property
    def covering(self) -> npt.NDArray[np.int64]:
        """Start positions of the evaluation windows: adjacent over the whole part, always the same.

        Every id except the part's first is predicted once. For a part with more than `MOST_EVALUATED`
        positions, a fixed random sample of windows is used.
        """
        count = len(range(self.start, self.stop - 1, self.context))
        most = max(1, MOST_EVALUATED // self.context)
        if count > most:  # a list of all starts would grow with the part
            drawn = np.random.default_rng((0, _EVALUATION)).choice(count, size=most, replace=False)
            chosen = np.sort(drawn)
        else:
            chosen = np.arange(count)
        return self.start + self.context * chosen
