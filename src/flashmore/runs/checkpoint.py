"""Weights, optimizer and state of one step in one safetensors file, written atomically.

Reading executes no code, and checks names, dtypes and shapes before any tensor.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flashmore.errors import RunError
from flashmore.files import (
    BLOCK,
    INTACT,
    disk_errors,
    open_regular,
    reading,
    replacing,
    write_all,
    write_direct,
)
from flashmore.runs import records

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of every tensor, by name."""

_WEIGHTS, _OPTIMIZER, _METADATA = "weights.", "optimizer.", "checkpoint"
_LARGEST_HEADER, _PIECE = 2**24, 2**20
_FILE = re.compile(r"step-(\d{9,15})\.safetensors")
_DTYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16, "F16": torch.float16,
           "I64": torch.int64, "U8": torch.uint8}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def file_name(step: int) -> str:
    """The name of a checkpoint's file; names sort by step."""
    return f"step-{step:09}.safetensors"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's file; None for the name of another file."""
    found = _FILE.fullmatch(name)
    return int(found[1]) if found and file_name(int(found[1])) == name else None


@dataclass(frozen=True)
class LossScale:
    """The loss scale for float16, and the number of steps since it last changed."""

    scale: float
    growth_tracker: int

    def __post_init__(self) -> None:
        if not (0 < self.scale <= torch.finfo(torch.float32).max and 0 <= self.growth_tracker < 2**31):
            raise ValueError(f"a scale of {self.scale:g} for {self.growth_tracker} steps")


@dataclass(frozen=True)
class Unevaluated:
    """The loss and the milliseconds per step of a log line that lacks its evaluation."""

    loss: float
    step_ms: float


@dataclass(frozen=True)
class State:
    """The training state other than tensors; values that no run can have are refused."""

    step: int
    """Updates made, of `max_steps`."""
    max_steps: int
    best_loss: float | None = None
    """Lowest validation loss so far, in nats per character."""
    best_step: int | None = None
    """The step at which it was measured, whose checkpoint has the best weights."""
    train_seconds: float = 0.0
    """Training time, excluding evaluation and saving."""
    loss_scale: LossScale | None = None
    """For a run in float16."""
    unevaluated: Unevaluated | None = None
    """If training was interrupted while it evaluated this step, which it then does first when resumed."""
    metrics_bytes: int = 0
    """Length of metrics.jsonl when the checkpoint was saved, and the SHA-256 of those bytes."""
    metrics_sha256: str = hashlib.sha256().hexdigest()

    def __post_init__(self) -> None:
        counts = (self.step, self.max_steps - self.step, self.metrics_bytes, self.train_seconds)
        if min(counts) < 0 or self.max_steps > 10**15:
            raise ValueError(f"step {self.step} of {self.max_steps}")
        if (self.best_step is None) != (self.best_loss is None):
            raise ValueError(f"a best loss {self.best_loss} at step {self.best_step}")
        if self.best_step is not None and not 0 <= self.best_step <= self.step:
            raise ValueError(f"best step {self.best_step} at step {self.step}")


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to resume training from a step."""

    weights: dict[str, Tensor]
    """The model's `state_dict()`; on the CPU when loaded."""
    optimizer: dict[str, Tensor]
    """The optimizer's tensors and the random number generators' states, by name; on the CPU when loaded."""
    state: State


@dataclass(frozen=True)
class _Header:
    """The sealed metadata of a checkpoint file: `weights` and `optimizer` as in `_digest`."""

    run: str
    weights: str
    optimizer: str
    state: State


class Image:
    """The tensors of a checkpoint in host memory, laid out as in its file; reused from save to save.

    `take` copies the tensors, so that training may go on; `write` computes checksums and writes the copy.
    """

    def __init__(self) -> None:
        self._layout: Layout = {}
        self._data = torch.empty(0, dtype=torch.uint8)
        self._tensors: dict[str, Tensor] = {}
        """Views of `_data`, in the order of the file."""

    def take(
        self,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        whole: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> None:
        """Copy the tensors of a checkpoint, of any device and strides, each as `whole` returns it."""
        tensors = {_WEIGHTS + name: value for name, value in weights.items()}
        tensors |= {_OPTIMIZER + name: value for name, value in optimizer.items()}
        if (layout := layout_of(tensors)) != self._layout:
            self._arrange(layout)
        for name, value in tensors.items():
            self._tensors[name].copy_(whole(value).detach())

    def _arrange(self, layout: Layout) -> None:
        # Large dtypes first, so that every tensor is aligned.
        order = sorted(layout, key=lambda name: (-layout[name][1].itemsize, name))
        ends = [*accumulate(math.prod(layout[name][0]) * layout[name][1].itemsize for name in order)]
        memory = torch.empty(ends[-1] + BLOCK, dtype=torch.uint8)
        self._data = memory[-memory.data_ptr() % BLOCK :][: ends[-1]]
        self._tensors = {
            name: self._data[start:end].view(layout[name][1]).view(layout[name][0])
            for name, (start, end) in zip(order, pairwise([0, *ends]), strict=True)
        }
        self._layout = layout

    def write(self, path: Path, run: str, state: State) -> None:
        """Write the file of the checkpoint atomically; a StorageError if that failed.

        Args:
            path: the file, whose name is that of the state's step.
            run: SHA-256 of the run's config.json.
            state: the state of the copied tensors.
        """
        header = _Header(run, self._digest(_WEIGHTS), self._digest(_OPTIMIZER), state)
        sealed = records.encode(records.seal(asdict(header)), indent=None).decode()
        table: dict[str, Any] = {"__metadata__": {_METADATA: sealed}}
        end = 0
        for name, value in self._tensors.items():
            start, end = end, end + value.nbytes
            dtype = _NAMES[value.dtype]
            table[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [start, end]}
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % BLOCK)
        with disk_errors(f"to write {path}", path), replacing(path) as file:
            write_all(file, len(text).to_bytes(8, "little") + text)
            write_direct(file, self._data.numpy().data)

    def _digest(self, prefix: str) -> str:
        own = {name: value for name, value in self._tensors.items() if name.startswith(prefix)}
        return _digest({name.removeprefix(prefix): value for name, value in own.items()})


def save(path: Path, run: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint of a run, which the SHA-256 of its config.json identifies."""
    image = Image()
    image.take(checkpoint.weights, checkpoint.optimizer)
    image.write(path, run, checkpoint.state)


def load(
    path: Path,
    run: str,
    weights: Layout | None = None,
    optimizer: Layout | None = None,
) -> Checkpoint:
    """Read the state, and the tensors for which a layout is given."""
    with _opened(path) as file:
        header = _header(file, path, run)
        loaded = Checkpoint({}, {}, header.state)
        if weights is not None:
            loaded.weights.update(_tensors(file, path, _WEIGHTS, weights, header.weights))
        if optimizer is not None:
            tensors = _tensors(file, path, _OPTIMIZER, optimizer, header.optimizer)
            loaded.optimizer.update(tensors)
        return loaded


def verify(path: Path, run: str) -> State:
    """Compare every tensor with its checksum, without keeping any; returns the state."""
    with reading(path), open_regular(path) as file:  # what the disk cannot read would end the process below,
        while file.read(_PIECE):  # where the file is mapped into memory
            pass
    with _opened(path) as file:
        header = _header(file, path, run)
        for prefix, digest in ((_WEIGHTS, header.weights), (_OPTIMIZER, header.optimizer)):
            found = _forms(file, prefix)
            if odd := [f"{name} of {dtype}" for name, (_, dtype) in found.items() if dtype not in _NAMES]:
                raise RunError(f"tensors of {', '.join(_DTYPES)} in {path}", odd[0], INTACT)
            _require(digest, {name: file.get_tensor(prefix + name) for name in found}, path)
        return header.state


def load_all(path: Path, run: str) -> Checkpoint:
    """Read all tensors of a checkpoint, whatever their shapes."""
    with _opened(path) as file:
        forms = [_forms(file, prefix) for prefix in (_WEIGHTS, _OPTIMIZER)]
    verify(path, run)  # dtypes too
    return load(path, run, *forms)  # type: ignore[arg-type]


def _header(file: Any, path: Path, run: str) -> _Header:
    record = records.decode((file.metadata() or {}).get(_METADATA, "").encode(), path)
    wanted = f"the state of a checkpoint in {path}"
    header = records.convert(records.unseal(record, path), _Header, wanted)
    if header.run != run:
        raise RunError(f"a checkpoint of this run in {path}", "a checkpoint of another run", INTACT)
    if header.state.step != step_of(path.name):
        found = f"the checkpoint of step {header.state.step}"
        raise RunError(f"the checkpoint of the step in the name {path}", found, INTACT)
    return header


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file that is not a link; any problem with it is a RunError."""
    with reading(path):
        with open_regular(path) as file:  # safetensors opens by name, so the file is checked first
            size = int.from_bytes(file.read(8), "little")
        if size > _LARGEST_HEADER:
            raise RunError(f"a checkpoint in {path}", f"a header of {size:,} bytes", INTACT)
        try:
            with safe_open(path, framework="pt") as tensors:
                yield tensors
        except SafetensorError as error:
            raise RunError(f"tensors in safetensors form in {path}", str(error), INTACT) from None
        except RuntimeError as error:  # torch opens the file once more, which may have been removed
            if "unable to open file" not in str(error):
                raise
            raise RunError(f"a checkpoint in {path}", "it was removed while it was read", INTACT) from None


def _tensors(file: Any, path: Path, prefix: str, layout: Layout, digest: str) -> dict[str, Tensor]:
    found = _forms(file, prefix)
    if found != layout:
        wanted = f"{prefix.rstrip('.')} that fit this run's model in {path}"
        raise RunError(wanted, differences(layout, found), INTACT)
    tensors = {name: file.get_tensor(prefix + name).clone() for name in layout}  # the file may be removed
    _require(digest, tensors, path)
    return tensors


def _require(digest: str, tensors: Mapping[str, Tensor], path: Path) -> None:
    if _digest(tensors) != digest:
        raise RunError(f"{path} as it was written", "tensors different from their checksum", INTACT)


def _forms(file: Any, prefix: str) -> dict[str, tuple[tuple[int, ...], torch.dtype | str]]:
    parts = {name: file.get_slice(name) for name in file.offset_keys() if name.startswith(prefix)}
    return {
        name.removeprefix(prefix): (tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype()))
        for name, part in parts.items()
    }


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Shapes and dtypes of tensors."""
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def differences(wanted: Layout, found: Mapping[str, tuple[tuple[int, ...], torch.dtype | str]]) -> str:
    """What is missing, unknown, or of another shape or dtype."""
    missing = [f"missing: {name}" for name in wanted if name not in found]
    unknown = [f"unknown: {name}" for name in found if name not in wanted]
    other = [
        f"{name} of shape {found[name][0]} and {found[name][1]} instead of {shape} and {dtype}"
        for name, (shape, dtype) in wanted.items()
        if name in found and found[name] != (shape, dtype)
    ]
    listed = missing + unknown + other
    return "; ".join(listed[:8]) + (f"; and {len(listed) - 8} more" if len(listed) > 8 else "")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
