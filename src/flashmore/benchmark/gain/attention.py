"""The lines of one place alone, on what the user's program gives to them: old, new, and which kernel runs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from msgspec import convert
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flashmore.backends.contract import describe_call
from flashmore.backends.explain import explain
from flashmore.errors import FlashmoreError
from flashmore.upgrade.site import Fragment
from flashmore.upgrade.trace.capture import Watched
from flashmore.upgrade.verify.captured import arguments_of
from flashmore.upgrade.verify.functions import functions_of


def replays(
    sites: Sequence[Mapping[str, Any]], watched: Sequence[Watched], device: torch.device
) -> tuple[dict[str, Callable[[], object]], list[dict[str, Any]]]:
    """Make a call of each version of each site that was seen, forward and backward, as often as in a step.

    Args:
        sites: each with its `code`, and its `fragment` as JSON.
        watched: what was seen of each.

    Returns:
        What is to be timed, by names such as `old lines 0`; and for each site how often it is called, and
        which kernel its SDPA runs in.
    """
    runs: dict[str, Callable[[], object]] = {}
    said: list[dict[str, Any]] = []
    for number, (site, seen) in enumerate(zip(sites, watched, strict=True)):
        if not seen.seen:
            said.append({"code": site["code"], "calls": seen.calls, "kernel": None})
            continue
        fragment = convert(site["fragment"], Fragment)
        old, new = functions_of(fragment)
        one = seen.seen[0]
        inputs = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in one["inputs"].items()
        }
        make = partial(arguments_of, inputs, fragment.inputs, double=False)
        autocast = partial(_autocast, one["autocast"], device)
        for word, lines in (("old", old), ("new", new)):
            runs[f"{word} lines {number}"] = partial(
                _both_ways, lines, make, autocast, max(1, seen.calls), device
            )
        kernel = _kernel(new, make, autocast, device)
        said.append({"code": site["code"], "calls": seen.calls, "kernel": kernel})
    return runs, said


def _both_ways(
    lines: Callable[..., Any],
    make: Callable[[], Any],
    autocast: Callable[[], AbstractContextManager[Any]],
    calls: int,
    device: torch.device,
) -> None:
    for _ in range(calls):
        arguments = make()
        with autocast():
            out = lines(*(argument.value for argument in arguments))
        outs = [out] if isinstance(out, Tensor) else list(out)
        leaves = [argument.leaf for argument in arguments if argument.leaf is not None]
        torch.autograd.grad(outs, leaves, [torch.ones_like(one) for one in outs], allow_unused=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Calls(TorchFunctionMode):
    """Notes what scaled_dot_product_attention is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.calls.append((args, given))
        return func(*args, **given)


def _kernel(
    lines: Callable[..., Any],
    make: Callable[[], Any],
    autocast: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
) -> dict[str, Any] | None:
    """Which kernel runs now, and every reason against the others; None where none is called."""
    with _Calls() as noted, autocast():
        lines(*(argument.value for argument in make()))
        on = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if on else None
    if not noted.calls:
        return None
    args, given = noted.calls[0]
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    call = dict(zip(names, args, strict=False)) | given
    q, k, v = (call[name] if dtype is None else call[name].to(dtype) for name in names[:3])
    mask = call.get("attn_mask")
    if mask is not None and dtype is not None and mask.dtype != torch.bool:  # cast under autocast, too
        mask = mask.to(dtype)
    try:
        answer = explain(
            describe_call(
                q, k, v, mask=mask,
                causal=call.get("is_causal", False), dropout_p=call.get("dropout_p", 0.0),
                gqa=call.get("enable_gqa", False),
            )
        )  # fmt: skip
    except FlashmoreError as error:
        return {"name": None, "how": str(error), "against": {}}
    against = {one.name: list(one.reasons) for one in answer.backends if one.reasons}
    return {"name": answer.default, "how": answer.how, "against": against}


def _autocast(dtype: str | None, device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=getattr(torch, dtype))
