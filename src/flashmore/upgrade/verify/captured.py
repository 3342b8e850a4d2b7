"""The test of one fragment on what a run of the user's own code really gave to it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashmore.upgrade.site import Fragment, Input
from flashmore.upgrade.verify.allowed import NotAllowed
from flashmore.upgrade.verify.case import Setting, run_cases
from flashmore.upgrade.verify.fragment import concluded
from flashmore.upgrade.verify.lines import Limits
from flashmore.upgrade.verify.messages import module
from flashmore.upgrade.verify.result import CaseResult, Verification, not_tested
from flashmore.upgrade.verify.runner import runners
from flashmore.upgrade.verify.tensors import Argument

Captured = dict[str, Any]
"""The values of a fragment's inputs by name: tensors, numbers, None, and what `messages.module` takes."""


def verify_captured(
    fragment: Fragment, assumptions: Sequence[str], path: Path, on: str, limits: Limits
) -> Verification:
    """Replay a fragment on captured inputs: as they were, and forced to the MATH kernel.

    Args:
        fragment: what the search extracted.
        assumptions: what the rewriting took for granted.
        path: a file that `flashmore.upgrade.trace` wrote for this site; loading it runs no code.
        on: what the report says it ran on.
        limits: of the processes that run the lines.

    Raises:
        RunnerEnded: one of them ended, or took too long.
    """
    failed = partial(not_tested, on=on, assumptions=tuple(assumptions))
    cases: list[CaseResult] = []
    try:
        with runners(fragment, limits) as (old, new):
            for seen in torch.load(path, weights_only=True):
                make = partial(arguments_of, seen["inputs"], fragment.inputs)
                autocast = seen["autocast"] or None
                eps = torch.finfo(getattr(torch, autocast)).eps if autocast else None
                name = said(seen)
                setting = Setting(autocast=autocast, eps=eps)
                settings = {name: setting, f"{name}, MATH kernel": replace(setting, math_kernel=True)}
                cases += run_cases(settings, old.run, new.run, make)
    except NotAllowed as error:
        return failed(str(error))
    if not cases:
        return failed("these lines were not reached")
    return concluded(cases, fragment, assumptions, on)


def arguments_of(captured: Captured, inputs: Sequence[Input], double: bool) -> list[Argument]:
    """Fresh arguments from captured values; every float tensor but a mask's gets a gradient."""
    return [_argument(given, captured[given.name], double) for given in inputs]


def _argument(given: Input, value: Any, double: bool) -> Argument:
    if isinstance(value, dict):
        return Argument(given.source, None, module(value))
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return Argument(given.source, None, value)
    leaf = value.double() if double else value.clone()
    if given.role == "mask":
        return Argument(given.source, None, leaf)
    leaf = leaf.detach().requires_grad_()
    return Argument(given.source, leaf, leaf.clone())


def said(seen: dict[str, Any]) -> str:
    """The shapes, dtypes and mode that were seen, as one name."""
    tensors = {name: value for name, value in seen["inputs"].items() if isinstance(value, Tensor)}
    parts = [f"{name} {_text(tensor)}" for name, tensor in tensors.items()]
    modes = [
        value["training"] for value in seen["inputs"].values() if isinstance(value, dict) and "p" in value
    ]
    parts += [] if not modes else ["training"] if any(modes) else ["eval"]
    return ", ".join(parts + ([f"{seen['autocast']} under autocast"] if seen["autocast"] else []))


def _text(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
