"""Batches as tensors: padded items, or windows of a long text.

B batch, N items, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flashmore.data.stored_items import Rows
from flashmore.data.vocabulary import EOS, Vocabulary
from flashmore.errors import ConfigError, DataError

IGNORE = -1
"""Target of padding positions, which the loss ignores."""
MOST_EVALUATED = 2**20
"""Most positions per evaluation, which bounds its time; smaller parts are read completely."""
_AT_ONCE = 2**16
"""Items encoded together: intermediate results of all at once would need more memory than the result."""
_ORDER, _EVALUATION = 0, 1


@dataclass(frozen=True)
class Sequences:
    """A whole part of a split as tensors on the device; `ids` and `targets` are int16 where these suffice.

    Long lists fill memory: int64 would need four times as much. `take` gives int64.
    """

    ids: Tensor
    """(N, T): BOS, the characters, padding 0."""
    targets: Tensor
    """(N, T): the characters, EOS, then IGNORE; the next id after each of `ids`."""
    lengths: Tensor
    """(N,) int64: number of positions with a target, EOS included."""

    def to(self, device: torch.device | str) -> "Sequences":
        """The same on another device."""
        return Sequences(self.ids.to(device), self.targets.to(device), self.lengths.to(device))

    def __getitem__(self, rows: slice) -> "Sequences":
        """Some of them, without copying."""
        return Sequences(self.ids[rows], self.targets[rows], self.lengths[rows])

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Gather the batch of `indices` (B,), int64 on any device: ids (B, T) and targets (B, T), int64."""
        chosen = indices.to(self.ids.device)
        return self.ids.index_select(0, chosen).long(), self.targets.index_select(0, chosen).long()


class StoredSequences:
    """A part of a prepared list, with the interface of `Sequences`: batches are read from the disk.

    Args:
        ids: of the whole list, on disk.
        remap: for each id on disk, the model's.
        context: T.
        device: of the batches.
    """

    def __init__(
        self,
        ids: npt.NDArray[np.uint16],
        rows: Rows,
        remap: npt.NDArray[np.uint16],
        context: int,
        device: torch.device | str,
    ) -> None:
        self._ids, self._rows, self._remap, self._context, self._device = ids, rows, remap, context, device
        self.lengths = torch.from_numpy(rows.lengths + np.int16(1))
        """(N,) int16 on the CPU: number of positions with a target, EOS included."""

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """As of `Sequences`."""
        chosen = indices.cpu().numpy()
        starts, lengths = self._rows.starts[chosen, None], self._rows.lengths[chosen, None]  # (B, 1)
        within = np.arange(self._context)  # (T,)
        places = starts + np.minimum(within, lengths)  # (B, T), from the end on that of EOS
        following = self._remap[self._ids[places]].astype(np.int64)
        targets = np.where(within <= lengths, following, IGNORE)
        ids = np.full_like(following, EOS)
        ids[:, 1:] = following[:, :-1]
        return torch.from_numpy(ids).to(self._device), torch.from_numpy(targets).to(self._device)


def encode_items(
    items: Sequence[str], vocabulary: Vocabulary, context: int, device: torch.device | str
) -> Sequences:
    """Encode items as sequences of T = `context` positions.

    Raises:
        DataError: an item longer than T - 1, or with characters outside the vocabulary.
    """
    lengths = np.fromiter(map(len, items), dtype=np.int64, count=len(items))  # (N,)
    if len(items) and lengths.max() >= context:
        raise DataError(
            f"items of at most {context - 1} characters, for a context of {context}",
            f"an item of {lengths.max()}",
            "shorter items, or a model with a longer context",
        )
    dtype = np.int16 if vocabulary.size <= 2**15 else np.int32
    ids = np.full((len(items), context), EOS, dtype=dtype)
    targets = np.full((len(items), context), IGNORE, dtype=dtype)
    for start in range(0, len(items), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        # In row-major order, the True entries of the mask are the items' characters in order.
        mask = np.arange(context - 1) < lengths[rows, None]  # (rows, T - 1)
        ids[rows, 1:][mask] = targets[rows, :-1][mask] = _encode_together("".join(items[rows]), vocabulary)
    targets[np.arange(len(items)), lengths] = EOS
    return Sequences(*map(torch.from_numpy, (ids, targets, lengths + 1))).to(device)


def _encode_together(text: str, vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    # One code point is one character: a binary search in the sorted vocabulary avoids a Python loop.
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    known = np.append(vocabulary.points, np.uint32(0xFFFFFFFF))  # no character, found for larger ones
    places = np.searchsorted(known, points)
    if not np.array_equal(known[places], points):
        vocabulary.encode(text)  # raises an error that names them
    return places.astype(np.int64) + 1


class BatchOrder:
    """The B items of each step's batch of N = `count`: a pure function of the seed and the step.

    Each epoch is a new permutation, so every item occurs once per epoch. With weights an epoch is a
    systematic sample of N draws in random order: an item with the share p of their sum occurs N·p times,
    rounded up or down at random so that this is the mean. With equal weights every item occurs once.

    Batches continue across epochs, so every batch is full, even if it is larger than the whole part.

    Args:
        count: N.
        batch: B.
        seed: of the order.
        weights: of the N items, above 0 and with a finite sum; None if they are equal.

    Raises:
        ConfigError: a count or batch below 1, or a negative seed.
    """

    def __init__(self, count: int, batch: int, seed: int, weights: Sequence[float] | None = None) -> None:
        for name, value, least in (("items", count, 1), ("batch", batch, 1), ("seed", seed, 0)):
            if value < least:
                raise ConfigError(f"{name} of at least {least}", str(value), f"any whole number from {least}")
        self.batch_size = batch
        self._count, self._seed = count, seed
        # Epochs are drawn in blocks of at least a batch, so that no batch spans more than two blocks.
        self._epochs = -(-batch // count)
        self._shares = None if weights is None else np.cumsum(np.asarray(weights, dtype=np.float64))
        self._number = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """Indices of the items in the batch of a step, counted from 0: (B,) int64 on the CPU."""
        number, start = divmod(step * self.batch_size, self._epochs * self._count)
        first = self._block(number)[start : start + self.batch_size].clone()
        missing = self.batch_size - len(first)
        return torch.cat((first, self._block(number + 1)[:missing])) if missing else first

    def _block(self, number: int) -> Tensor:
        if number != self._number:
            generator = np.random.default_rng((self._seed, number))
            epochs = np.tile(np.arange(self._count, dtype=np.int64), (self._epochs, 1))
            if self._shares is not None:
                points = (epochs + generator.random((self._epochs, 1))) * (self._shares[-1] / self._count)
                epochs = np.searchsorted(self._shares, points, side="right")
                epochs = np.minimum(epochs, self._count - 1)  # where rounding exceeds the sum
            shuffled = generator.permuted(epochs, axis=1)
            self._number, self._order = number, torch.from_numpy(shuffled.reshape(-1))
        return self._order


def sampled_rows(batch: int, share: float) -> int:
    """How many of the rows of a batch a share of them is: at least one, and not all."""
    return min(max(1, round(batch * share)), batch - 1) if share else 0


class MixedOrder:
    """The same for batches whose last rows are of other items, which are numbered after the N = `count`.

    Args:
        count: N.
        others: number of the other items; at least 1.
        batch: B.
        share: of the other items in a batch; see `sampled_rows`.
        seed: of both orders.
    """

    def __init__(self, count: int, others: int, batch: int, share: float, seed: int) -> None:
        rows = sampled_rows(batch, share)
        self.batch_size, self._count = batch, count
        self._own = BatchOrder(count, batch - rows, seed)
        self._others = BatchOrder(others, rows, seed) if rows else None

    def indices(self, step: int) -> Tensor:
        """As of `BatchOrder`."""
        own = self._own.indices(step)
        return own if self._others is None else torch.cat((own, self._others.indices(step) + self._count))


class Windows:
    """Windows of T = `context` ids from one part [start, stop) of a long text, as batches on a device.

    Args:
        ids: of the whole text, on disk.
        part: start and stop.
        context: T.
        device: of the batches.
        remap: for each id on disk, the model's; None if they are the same.

    Raises:
        ConfigError: the part does not hold a window and the id after it.
    """

    def __init__(
        self,
        ids: npt.NDArray[np.uint16],
        part: tuple[int, int],
        context: int,
        device: torch.device,
        remap: npt.NDArray[np.uint16] | None = None,
    ) -> None:
        start, stop = part
        if not (0 <= start < stop <= len(ids) and stop - start > context >= 1):
            wanted = f"a part that holds a window of {context}"
            raise ConfigError(wanted, f"ids {start} to {stop}", "a longer part")
        self.ids = np.asarray(ids)  # a plain view: indexing a memory map has Python overhead
        self.start, self.stop, self.context, self.device = start, stop, context, device
        self.remap = remap

    def random_starts(self, step: int, batch: int, seed: int) -> npt.NDArray[np.int64]:
        """Start positions of the batch of a step, drawn uniformly with replacement: a function of both."""
        generator = np.random.default_rng((seed, _ORDER, step))
        return generator.integers(self.start, self.stop - self.context, size=batch)

    def at(self, starts: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Windows that start at these positions: ids (B, T) and targets (B, T), int64, on the device.

        Positions whose target is beyond the part have id 0 and target IGNORE.
        """
        places = starts[:, None] + np.arange(self.context + 1)  # (B, T + 1)
        inside = places < self.stop
        window = self.ids[np.minimum(places, self.stop - 1)]
        if self.remap is not None:
            window = self.remap[window]
        window = np.where(inside, window, 0).astype(np.int64)
        targets = np.where(inside[:, 1:], window[:, 1:], IGNORE)
        ids = torch.from_numpy(window[:, :-1].copy()).to(self.device)
        return ids, torch.from_numpy(targets).to(self.device)

    @cached_property
    def covering(self) -> npt.NDArray[np.int64]:
        """Start positions of the evaluation windows, always the same.

        Every id except the part's first is predicted once; of a part with more than `MOST_EVALUATED`
        positions, a fixed random sample of windows is used.
        """
        count = len(range(self.start, self.stop - 1, self.context))
        most = max(1, MOST_EVALUATED // self.context)
        if count <= most:
            return self.start + self.context * np.arange(count)
        # A list of all starts would grow with the part.
        drawn = np.random.default_rng((0, _EVALUATION)).choice(count, size=most, replace=False)
        return self.start + self.context * np.sort(drawn)
