"""Weights, optimizer and state of one step in one safetensors file, which is replaced atomically.

Reading executes no code, and checks names, dtypes and shapes before any tensor.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from flashmore.errors import RunError
from flashmore.files import INTACT, open_regular, reading, replace_file
from flashmore.runs import records

Name = Literal["last", "best"]
Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of every tensor, by name."""

_WEIGHTS, _OPTIMIZER, _METADATA = "weights.", "optimizer.", "checkpoint"
_LARGEST_HEADER = 2**24
_DTYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16, "F16": torch.float16,
           "I64": torch.int64, "U8": torch.uint8}  # fmt: skip


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
    """The step of the checkpoint `best`."""
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

    name: str
    run: str
    weights: str
    optimizer: str
    state: State


def save(path: Path, run: str, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint at `path` of a run, which the SHA-256 of its config.json identifies."""
    weights, optimizer = _on_cpu(checkpoint.weights), _on_cpu(checkpoint.optimizer)
    header = _Header(path.stem, run, _digest(weights), _digest(optimizer), checkpoint.state)
    tensors = {_WEIGHTS + name: value for name, value in weights.items()}
    tensors |= {_OPTIMIZER + name: value for name, value in optimizer.items()}
    sealed = records.encode(records.seal(asdict(header)), indent=None).decode()
    replace_file(path, serialize(tensors, {_METADATA: sealed}))


def load(
    path: Path,
    run: str,
    weights: Layout | None = None,
    optimizer: Layout | None = None,
    optional: Layout | None = None,
) -> Checkpoint:
    """Read the state, and the tensors for which a layout is given; `optional` ones the optimizer may have."""
    with _opened(path) as file:
        record = records.decode((file.metadata() or {}).get(_METADATA, "").encode(), path)
        wanted = f"the state of a checkpoint in {path}"
        header = records.convert(records.unseal(record, path), _Header, wanted)
        if header.run != run:
            raise RunError(f"a checkpoint of this run in {path}", "a checkpoint of another run", INTACT)
        if header.name != path.stem:
            raise RunError(f"the checkpoint '{path.stem}' in {path}", f"'{header.name}'", INTACT)
        loaded = Checkpoint({}, {}, header.state)
        if weights is not None:
            loaded.weights.update(_tensors(file, path, _WEIGHTS, weights, {}, header.weights))
        if optimizer is not None:
            tensors = _tensors(file, path, _OPTIMIZER, optimizer, optional or {}, header.optimizer)
            loaded.optimizer.update(tensors)
        return loaded


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


def _tensors(
    file: Any, path: Path, prefix: str, layout: Layout, optional: Layout, digest: str
) -> dict[str, Tensor]:
    names = [name for name in file.offset_keys() if name.startswith(prefix)]
    found = {name.removeprefix(prefix): _form(file.get_slice(name)) for name in names}
    layout = {**layout, **{name: form for name, form in optional.items() if name in found}}
    if found != layout:
        wanted = f"{prefix.rstrip('.')} that fit this run's model in {path}"
        raise RunError(wanted, differences(layout, found), INTACT)
    tensors = {name: file.get_tensor(prefix + name).clone() for name in layout}  # the file may be removed
    if _digest(tensors) != digest:
        raise RunError(f"{path} with the tensors that its checksum describes", "different ones", INTACT)
    return tensors


def _form(part: Any) -> tuple[tuple[int, ...], torch.dtype | str]:
    return tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype())


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


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Copies: safetensors supports neither views that share memory nor strides.
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
