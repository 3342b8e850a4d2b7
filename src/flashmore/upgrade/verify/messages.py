"""What the judge and the processes that run the lines say to each other: JSON, then tensors as their bytes.

Neither runs code when it is read. The judge's side takes nothing for granted of what it is answered: it is
limited in size, and has exactly the tensors that were asked for, in a form that can be compared. Safetensors
would do, but takes ten times as long for a handful of small tensors, and a test sends thousands of messages.
"""

import json
import math
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from flashmore.upgrade.verify.tensors import Argument

LONGEST_TEXT = 2**20
"""Bytes of the JSON of one message."""
MOST_OUTPUTS = 64
_LENGTH_BYTES = 4
_DTYPES = {
    str(dtype): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8,
        torch.int16, torch.int32, torch.int64,
    )
}  # fmt: skip
_MOST_DIMENSIONS = 32
Message = tuple[dict[str, Any], dict[str, Tensor]]


class Unreadable(Exception):
    """A message that is not what it must be; the text says why."""


def encoded(text: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """One message, as `receive` reads it."""
    shapes = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    head = json.dumps({"text": text, "tensors": shapes}).encode()
    data = [
        tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for tensor in tensors.values()
    ]
    return b"".join([len(head).to_bytes(_LENGTH_BYTES), head, *data])


def receive(connection: "Connection[Any, Any]", most_bytes: int) -> Message:
    """Read one message.

    Raises:
        EOFError: the other side has gone.
        Unreadable: it is too long, or no message.
    """
    try:
        data = connection.recv_bytes(most_bytes)
        start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES])
        if start > LONGEST_TEXT:
            raise Unreadable("its text is too long")
        head = json.loads(data[_LENGTH_BYTES:start])
        text, shapes = head["text"], head["tensors"]
        if not isinstance(text, dict) or not isinstance(shapes, dict):
            raise Unreadable("it is not an object")
        return text, _tensors(shapes, bytearray(data[start:]))
    except (EOFError, ConnectionError):
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from None


def _tensors(shapes: Mapping[str, Any], data: bytearray) -> dict[str, Tensor]:
    """Tensors from their bytes, which must be exactly as many as they need."""
    found, at = {}, 0
    for name, (dtype_name, shape) in shapes.items():
        dtype = _DTYPES[dtype_name]
        if len(shape) > _MOST_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
            raise Unreadable("a shape is invalid")
        count = math.prod(shape)
        end = at + count * dtype.itemsize
        if end > len(data):
            raise Unreadable("its tensors are longer than it is")
        whole = (
            torch.frombuffer(data, dtype=dtype, count=count, offset=at)
            if count
            else torch.empty(0, dtype=dtype)
        )
        found[name], at = whole.reshape(shape), end
    if at != len(data):
        raise Unreadable("its tensors are shorter than it is")
    return found


def check_results(tensors: Mapping[str, Tensor], arguments: Sequence[Argument]) -> dict[str, Tensor]:
    """The outputs in their order, then the gradients by the names of what they are taken of.

    Raises:
        Unreadable: outputs have other names than `out`, or `out 0` and so on; or there are gradients, but
            not one for each leaf, in its shape and dtype.
    """
    leaves = {f"d {at}": argument for at, argument in enumerate(arguments) if argument.leaf is not None}
    count = sum(name.startswith("out") for name in tensors)
    outs = ["out"] if "out" in tensors else [f"out {index}" for index in range(count)]
    gradients = list(leaves) if len(tensors) > len(outs) else []
    if not 0 < len(outs) <= MOST_OUTPUTS or {*outs, *gradients} != set(tensors):
        raise Unreadable("the results have other names")
    found = {name: tensors[name] for name in outs}
    for name in gradients:
        leaf, gradient = leaves[name].leaf, tensors[name]
        assert leaf is not None
        if gradient.shape != leaf.shape or gradient.dtype != leaf.dtype:
            raise Unreadable("a gradient has another shape or dtype")
        found[f"d {leaves[name].name}"] = gradient
    return found


def describe(arguments: Sequence[Argument]) -> Message:
    """Arguments as a message; tensors keep their strides.

    Raises:
        TypeError: one is of a kind that no test has.
    """
    tensors: dict[str, Tensor] = {}
    described = []
    for argument in arguments:
        one = _described(argument.value, tensors)
        described.append({**one, "grad": argument.leaf is not None})
    return {"arguments": described}, tensors


def _described(value: object, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"kind": "tensor", "name": name, "strides": list(value.stride())}
    if isinstance(value, nn.Dropout):
        return {"kind": "dropout", "p": value.p, "training": value.training}
    if isinstance(value, nn.Softmax):
        return {"kind": "softmax", "dim": value.dim}
    if isinstance(value, (list, tuple)):
        return {"kind": "list", "items": [_described(each, tensors) for each in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"kind": "plain", "value": value}
    raise TypeError(f"a {type(value).__name__} is no argument of a test")


def made(described: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> list[Argument]:
    """Fresh arguments from what `describe` wrote, named by their number.

    Each tensor is a copy, so that a leaf is never changed.
    """
    found = []
    for at, one in enumerate(described):
        leaf = tensors[one["name"]].clone().requires_grad_() if one["grad"] else None
        found.append(
            Argument(str(at), leaf, _made(one, tensors) if leaf is None else _laid_out(leaf, one["strides"]))
        )
    return found


def _made(one: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> object:
    match one["kind"]:
        case "tensor":
            return _laid_out(tensors[one["name"]], one["strides"])
        case "dropout" | "softmax":
            return module(one)
        case "list":
            return [_made(each, tensors) for each in one["items"]]
    return one["value"]


def module(described: Mapping[str, Any]) -> nn.Module:
    """A dropout of a probability and a mode, or a softmax over a dimension."""
    if described["kind"] == "dropout":
        return nn.Dropout(described["p"]).train(described["training"])
    return nn.Softmax(dim=described["dim"])


def _laid_out(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    """A copy with these strides, through which gradients flow."""
    if 0 in strides:  # an expanded tensor cannot be written to
        return tensor.clone()
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)
