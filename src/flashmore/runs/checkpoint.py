"""Weights, optimizer and state of one step in one safetensors file, which is replaced atomically.

The file's metadata contains a sealed JSON object: the state, SHA-256 of the weights and of the optimizer's
tensors, and the run that the checkpoint belongs to. Reading executes no code, and checks names, dtypes and
shapes before any tensor.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flashmore.errors import RunError
from flashmore.files import INTACT, open_regular, reading, replace_file
from flashmore.runs import records

Name = Literal["last", "best"]
Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of every tensor, by name."""

_WEIGHTS, _OPTIMIZER = "weights.", "optimizer."
_METADATA = "checkpoint"
_LARGEST_HEADER = 2**24
_DTYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16, "F16": torch.float16,
           "I64": torch.int64, "U8": torch.uint8}  # fmt: skip


@dataclass(frozen=True)
class LossScale:
    """The loss scale for float16, and the number of steps since it last changed.

    Raises:
        ValueError: values that `torch.amp.GradScaler` cannot have.
    """

    scale: float
    growth_tracker: int

    def __post_init__(self) -> None:
        if not (0 < self.scale <= torch.finfo(torch.float32).max and 0 <= self.growth_tracker < 2**31):
            raise ValueError(f"a scale of {self.scale:g} for {self.growth_tracker} steps")


@dataclass(frozen=True)
class State:
    """The training state other than tensors.

    Raises:
        ValueError: values that no training run can have.
    """

    step: int
    """Updates made."""
    max_steps: int
    """Total number of updates of the run."""
    best_loss: float | None = None
    """Lowest validation loss so far, in nats per character."""
    best_step: int | None = None
    """The step of the checkpoint `best`."""
    train_seconds: float = 0.0
    """Training time, excluding evaluation and saving."""
    loss_scale: LossScale | None = None
    """For a run in float16."""
    metrics_bytes: int = 0
    """Length of metrics.jsonl when the checkpoint was saved."""
    metrics_sha256: str = hashlib.sha256().hexdigest()
    """SHA-256 of those bytes."""

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
    """The metadata of a checkpoint file."""

    name: str
    run: str
    """SHA-256 of the run's configuration, which identifies the run."""
    weights: str
    optimizer: str
    """SHA-256 of the tensors' names, dtypes, shapes and bytes."""
    state: State


class CheckpointFile:
    """The file of a checkpoint.

    Args:
        home: the run's folder.
        name: which checkpoint.
        run: SHA-256 of the run's configuration.
    """

    def __init__(self, home: Path, name: Name, run: str) -> None:
        self.path = home / f"{name}.safetensors"
        self._name = name
        self._run = run

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint.

        Raises:
            StorageError: writing failed; the previous checkpoint is kept.
        """
        weights, optimizer = _on_cpu(checkpoint.weights), _on_cpu(checkpoint.optimizer)
        header = _Header(self._name, self._run, _digest(weights), _digest(optimizer), checkpoint.state)
        tensors = {_WEIGHTS + name: value for name, value in weights.items()}
        tensors |= {_OPTIMIZER + name: value for name, value in optimizer.items()}
        sealed = records.encode(records.seal(asdict(header)), indent=None).decode()
        replace_file(self.path, save(tensors, {_METADATA: sealed}))

    def load_state(self) -> State:
        """Read only the state, no tensors.

        Raises:
            RunError: there is no such checkpoint, it is of another run, or its metadata was altered.
            StorageError: the file cannot be read.
        """
        with self._open() as file:
            return self._header(file.metadata()).state

    def load_weights(self, layout: Layout) -> tuple[dict[str, Tensor], State]:
        """Read the weights and the state; the optimizer's tensors are not read.

        Args:
            layout: the model's layout; anything else is refused before a tensor is read.

        Raises:
            RunError: there is no such checkpoint, it is of another run or model, or it was altered.
            StorageError: the file cannot be read.
        """
        with self._open() as file:
            header = self._header(file.metadata())
            return self._tensors(file, _WEIGHTS, layout, header.weights), header.state

    def load(self, weights: Layout, optimizer: Layout, optional: Layout) -> Checkpoint:
        """Read the whole checkpoint.

        Args:
            weights: the model's layout.
            optimizer: the layout of this run's optimizer.
            optional: further tensors that the optimizer may have.

        Raises:
            RunError, StorageError: as `load_weights`.
        """
        with self._open() as file:
            header = self._header(file.metadata())
            return Checkpoint(
                self._tensors(file, _WEIGHTS, weights, header.weights),
                self._tensors(file, _OPTIMIZER, optimizer, header.optimizer, optional),
                header.state,
            )

    def _open(self) -> "_Opened":
        return _Opened(self.path)

    def _header(self, metadata: Mapping[str, str] | None) -> _Header:
        wanted = f"the state of a checkpoint in {self.path}"
        record = records.decode((metadata or {}).get(_METADATA, "").encode(), self.path)
        records.check_seal(record, self.path)
        del record[records.SEAL]
        header = records.convert(record, _Header, wanted)
        if header.run != self._run:
            raise RunError(f"a checkpoint of this run in {self.path}", "one of another run", INTACT)
        if header.name != self._name:
            raise RunError(f"the checkpoint '{self._name}' in {self.path}", f"'{header.name}'", INTACT)
        return header

    def _tensors(
        self, file: "_Opened", prefix: str, layout: Layout, digest: str, optional: Layout | None = None
    ) -> dict[str, Tensor]:
        found = file.layout(prefix)
        there = {name: form for name, form in (optional or {}).items() if name in found}
        layout = {**layout, **there}
        if found != layout:
            wanted = f"{prefix.rstrip('.')} that fit this run's model in {self.path}"
            raise RunError(wanted, differences(layout, found), INTACT)
        tensors = {name: file.tensor(prefix + name) for name in layout}
        if _digest(tensors) != digest:
            raise RunError(f"{self.path} with the tensors that its checksum describes", "others", INTACT)
        return tensors


class _Opened:
    """A safetensors file that is not a link; any problem with it is a RunError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # safetensors opens by name, so the file is checked first.
        with reading(path):
            with open_regular(path) as file:
                header = int.from_bytes(file.read(8), "little")
            if header > _LARGEST_HEADER:
                raise RunError(f"a checkpoint in {path}", f"a header of {header:,} bytes", INTACT)
            try:
                self._file: Any = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise self._damaged(error) from None

    def __enter__(self) -> "_Opened":
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def metadata(self) -> Mapping[str, str] | None:
        """The metadata, as text."""
        metadata: Mapping[str, str] | None = self._file.metadata()
        return metadata

    def layout(self, prefix: str) -> dict[str, tuple[tuple[int, ...], torch.dtype | str]]:
        """Shapes and dtypes of the tensors whose names start with `prefix`, which is removed."""
        names = [name for name in self._file.offset_keys() if name.startswith(prefix)]
        slices = {name: self._file.get_slice(name) for name in names}
        return {
            name.removeprefix(prefix): (
                tuple(part.get_shape()),
                _DTYPES.get(part.get_dtype(), part.get_dtype()),
            )
            for name, part in slices.items()
        }

    def tensor(self, name: str) -> Tensor:
        """A copy of a tensor: the file may be removed."""
        try:
            tensor: Tensor = self._file.get_tensor(name).clone()
        except SafetensorError as error:
            raise self._damaged(error) from None
        return tensor

    def _damaged(self, error: Exception) -> RunError:
        return RunError(f"tensors in safetensors form in {self.path}", str(error), INTACT)


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
    """Copies: safetensors supports neither views that share memory nor strides."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
