"""Weights, optimizer and state of one step, saved as one folder that is whole or absent.

A checkpoint NAME is written as the folder NAME.new, then NAME is renamed to NAME.old, NAME.new to NAME, and
NAME.old is deleted. A process can die between any two of these; whatever it leaves behind still holds one
whole checkpoint, and `find` knows which. Reading changes nothing, so a run can be read while it trains.
"""

import io
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from flashmore.errors import RunError
from flashmore.runs import records
from flashmore.runs.storage import disk_errors, sync_folder, write_file

Name = Literal["last", "best"]

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.pt"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What training needs to go on from a step."""

    weights: dict[str, Tensor]
    """The model's `state_dict()`; on the CPU when loaded."""
    optimizer: dict[str, Any]
    """Tensors, numbers, strings and containers of them (`torch.load` with `weights_only=True` reads no more);
    on the CPU when loaded, and empty when it was not asked for."""
    state: dict[str, Any]
    """The rest, as JSON values: the step, the best loss so far, and so on. NaN and infinities are refused."""


def find(home: Path, name: Name) -> Path | None:
    """Find the folder that holds checkpoint `name`, whatever moment its last writer died at."""
    whole, new, old = _folders(home, name)
    if whole.is_dir():
        return whole
    if _is_whole(new):
        return new
    if old.is_dir():
        return old
    # A writer that lives may have renamed the new folder between the first question and the second.
    return whole if whole.is_dir() else None


def save(home: Path, name: Name, checkpoint: Checkpoint) -> None:
    """Replace checkpoint `name` in the run's folder `home`.

    Raises:
        StorageError: the disk refused; the previous checkpoint is still there.
        ValueError, TypeError: the state holds what JSON does not know.
    """
    files = _encode(checkpoint)
    whole, new, old = _folders(home, name)
    with disk_errors(f"to save the checkpoint {whole}", home):
        _settle(home, name)
        try:
            new.mkdir()
            for file, data in files.items():
                write_file(new / file, data)
            sync_folder(new)
            if whole.exists():
                whole.rename(old)
            new.rename(whole)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        sync_folder(home)
        shutil.rmtree(old, ignore_errors=True)


def load(home: Path, name: Name, optimizer: bool = True) -> Checkpoint:
    """Read checkpoint `name`, all of one step even while another process replaces it.

    Args:
        home: the run's folder.
        name: which checkpoint.
        optimizer: False leaves the optimizer's file unread.

    Raises:
        RunError: there is none, or a file of it is missing, cut off or altered.
        StorageError: a file cannot be read.
    """
    while True:
        before = _stamp(home, name)
        try:
            return _read(_require(home, name), optimizer)
        except RunError:
            if _stamp(home, name) == before:
                raise


def _folders(home: Path, name: Name) -> tuple[Path, Path, Path]:
    return home / name, home / f"{name}.new", home / f"{name}.old"


def _settle(home: Path, name: Name) -> None:
    """Give the checkpoint its own name again and drop what a dead writer left beside it."""
    whole, new, old = _folders(home, name)
    found = find(home, name)
    if found is not None and found != whole:
        found.rename(whole)
    for left in (new, old):
        if left.exists():
            shutil.rmtree(left)


def _encode(checkpoint: Checkpoint) -> dict[str, bytes]:
    # Copies on the CPU: safetensors takes neither views that share memory nor strides.
    weights = {
        key: value.detach().to("cpu", copy=True).contiguous() for key, value in checkpoint.weights.items()
    }
    optimizer = io.BytesIO()
    torch.save(checkpoint.optimizer, optimizer)
    files = {WEIGHTS: save_safetensors(weights), OPTIMIZER: optimizer.getvalue()}
    digests = {name: records.digest(data) for name, data in files.items()}
    state = records.seal({"files": digests, "state": checkpoint.state})
    return {**files, STATE: records.encode(state)}


def _require(home: Path, name: Name) -> Path:
    found = find(home, name)
    if found is None:
        raise RunError(
            f"the checkpoint '{name}' in {home}",
            "there is none",
            "a run that reached its first evaluation; one that died before holds nothing, so train anew"
            if name == "last"
            else "the checkpoint 'last'",
        )
    return found


def _read(folder: Path, optimizer: bool) -> Checkpoint:
    digests, state = _read_state(folder)
    data = records.read_file(folder / WEIGHTS)
    records.check_digest(data, digests.get(WEIGHTS), folder / WEIGHTS)
    weights = _decode_weights(data, folder / WEIGHTS)
    if not optimizer:
        return Checkpoint(weights, {}, state)
    data = records.read_file(folder / OPTIMIZER)
    records.check_digest(data, digests.get(OPTIMIZER), folder / OPTIMIZER)
    return Checkpoint(weights, _decode_optimizer(data, folder / OPTIMIZER), state)


def _read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = folder / STATE
    record = records.decode(records.read_file(path), path)
    records.check_seal(record, path)
    digests, state = record.get("files"), record.get("state")
    if not isinstance(digests, dict) or not isinstance(state, dict):
        raise RunError(f"the objects 'files' and 'state' in {path}", ", ".join(record), records.INTACT)
    return digests, state


def _decode_weights(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(data)
    except Exception as error:  # besides SafetensorError, what torch says of odd shapes and dtypes
        raise RunError(f"weights in safetensors form in {path}", str(error), records.INTACT) from error


def _decode_optimizer(data: bytes, path: Path) -> dict[str, Any]:
    wanted = f"tensors and plain values in {path}, which can be read without running code"
    try:
        # Of odd pickles torch also warns; the error says what there is to say.
        with warnings.catch_warnings(action="ignore"):
            value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # odd bytes bring the restricted unpickler down in ways that share no name
        first = str(error).strip().partition("\n")[0]
        raise RunError(wanted, f"something else: {first}", records.INTACT) from error
    if not isinstance(value, dict):
        raise RunError(wanted, type(value).__name__, records.INTACT)
    return value


def _is_whole(folder: Path) -> bool:
    try:
        _read(folder, optimizer=True)
    except RunError:
        return False
    return True


def _stamp(home: Path, name: Name) -> bytes | None:
    """Something that differs whenever another checkpoint has taken the name."""
    try:
        return (home / name / STATE).read_bytes()
    except OSError:
        return None
