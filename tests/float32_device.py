"""A stand-in for a device without float64, such as Apple's GPU: behind each of its tensors is one on the CPU.

With `float32_device()`, `torch.device("mps")` is there and `auto` takes it. Every operation on its tensors is
done on the CPU. What would put a float64 number on the device is refused with MPS's own message, and so is a
generator of the CPU there. The kernels, the speed and the rounding of MPS are not shown by it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("mps", 0)
MESSAGE = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)


class DeviceTensor(torch.Tensor):
    """A tensor on the device."""

    behind: torch.Tensor
    """Where its numbers really are."""
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "DeviceTensor":
        if inner.dtype == torch.float64:
            raise TypeError(MESSAGE)
        with torch.inference_mode(False):  # whatever is inside: views of both kinds cannot be mixed
            made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
            )
        made.behind = inner
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.behind.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the CPU tensors behind its arguments; its results are where they would be."""
    flat = [*_leaves((args, kwargs))]
    inner_args, inner_kwargs = _mapped((args, kwargs), _behind)
    owners = {id(each.behind): each for each in flat if isinstance(each, DeviceTensor)}
    named = kwargs.get("device")
    on_device = bool(owners) if named is None else torch.device(named).type == DEVICE.type
    if on_device and any(isinstance(each, torch.Generator) for each in flat):
        raise RuntimeError("Expected a 'mps' device type for generator but found 'cpu'")
    result = func(*inner_args, **inner_kwargs)
    known = {id(each) for each in flat if isinstance(each, torch.Tensor)}  # what was changed in place

    def placed(each: Any) -> Any:
        if not isinstance(each, torch.Tensor):
            return each
        if id(each) in owners:
            return owners[id(each)]
        return each if id(each) in known or not on_device else DeviceTensor(each)

    return _mapped(result, placed)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """A value with a function done to everything in its tuples, lists and dictionaries."""
    if isinstance(value, dict):
        return {name: _mapped(each, function) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(each, function) for each in value])
    return function(value)


def _leaves(value: Any) -> Iterator[Any]:
    """What `_mapped` does its function to."""
    if isinstance(value, (dict, tuple, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    else:
        yield value


def _behind(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.behind
    return torch.device("cpu") if isinstance(value, torch.device) else value


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Catches operations that name the device and have no tensor on it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Methods(TorchFunctionMode):
    """Does what torch decides by the device before it calls an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor: Any = args[0] if args else None
        on_device = isinstance(tensor, DeviceTensor)
        if func == torch.Tensor.device.__get__ and on_device:
            return DEVICE
        if func is torch.Tensor.tolist and on_device:
            return tensor.behind.tolist()
        if func is torch.Tensor.numpy and on_device:
            raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first")
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type:
            made = torch.tensor(*args, **kwargs | {"device": "cpu"})
            return _moved(made, DEVICE, made.dtype)
        if func is torch.Tensor.cpu:
            return _moved(tensor, torch.device("cpu"), tensor.dtype)
        if func is torch.Tensor.to:
            given = [*args[1:], *kwargs.values()]
            other = next((each for each in given if isinstance(each, torch.Tensor)), None)
            here = DEVICE if on_device else tensor.device
            device = next((each for each in given if isinstance(each, (str, torch.device))), None)
            dtype = next((each for each in given if isinstance(each, torch.dtype)), tensor.dtype)
            if other is None:
                return _moved(tensor, here if device is None else torch.device(device), dtype)
        return func(*args, **kwargs)


def _moved(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    if dtype == tensor.dtype and (device.type == DEVICE.type) == isinstance(tensor, DeviceTensor):
        return tensor
    return torch.ops.aten._to_copy.default(tensor, dtype=dtype, device=device)  # type: ignore[no-any-return]


@contextmanager
def float32_device() -> Iterator[None]:
    """Make `mps` a device of this machine, and the one that `auto` takes."""
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `module.to` makes new parameters
    try:
        with (
            mock.patch("torch.backends.mps.is_available", return_value=True),
            mock.patch("torch.mps.synchronize"),
            Operations(),  # type: ignore[no-untyped-call]
            Methods(),
        ):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
