"""The whole example, with the file as it is and with the file as it would be written: outputs and gradients.

The replayed lines show that a rewrite is right; this shows that the file which would be written holds it, and
that what follows in the file takes its result.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from flashmore.upgrade.trace.user import Example
from flashmore.upgrade.trace.versions import NotSwapped, Versions
from flashmore.upgrade.verify.case import Setting, run, run_cases
from flashmore.upgrade.verify.result import WHOLE, CaseResult
from flashmore.upgrade.verify.tensors import Argument

LARGEST = 2**27
"""Numbers in all weights of a model that is copied in float64."""


def compare_whole(example: Example, rewritten: Mapping[str, str]) -> CaseResult:
    """Run the example in both versions, judged as one case; dropout is off.

    Args:
        example: the model and its inputs; its weights are copied.
        rewritten: resolved paths, and the whole new source of each.
    """
    state = dict(example.model.named_parameters()) | dict(example.model.named_buffers())
    if sum(tensor.numel() for tensor in state.values()) > LARGEST:
        return CaseResult(WHOLE, "skipped", "the model is too large to be copied in float64")
    try:
        versions = Versions(rewritten)
    except NotSwapped as error:
        return CaseResult(WHOLE, "skipped", str(error))
    names = [*state, "inputs"]

    def make(double: bool) -> list[Argument]:
        inputs = tree_map(lambda value: _cast(value, double), (example.arguments, dict(example.named)))
        return [*(_argument(name, state[name], double) for name in state), Argument("inputs", None, inputs)]

    def version(switch: Callable[[], None]) -> Callable[..., Any]:
        def lines(*values: Any) -> Any:
            switch()
            given = dict(zip(names, values, strict=True))
            arguments, named = given.pop("inputs")
            return _called(example.model, given, arguments, named)

        return lines

    try:
        before, after = (partial(run, version(switch)) for switch in (versions.before, versions.after))
        return next(run_cases({WHOLE: Setting()}, before, after, make))
    finally:
        versions.before()


def _called(
    model: nn.Module, state: dict[str, Tensor], arguments: tuple[Any, ...], named: dict[str, Any]
) -> list[Tensor]:
    """All float tensors of the result; tensors that the model makes are in the precision of its weights."""
    was = torch.get_default_dtype()
    doubles = any(tensor.dtype == torch.float64 for tensor in state.values())
    torch.set_default_dtype(torch.float64 if doubles else was)
    try:
        result = functional_call(model, state, arguments, named)
    finally:
        torch.set_default_dtype(was)
    leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not leaves and hasattr(result, "__dict__"):
        leaves = [v for v in vars(result).values() if isinstance(v, Tensor) and v.is_floating_point()]
    return leaves


def _argument(name: str, tensor: Tensor, double: bool) -> Argument:
    copied = _cast(tensor.detach(), double).clone()
    if not copied.is_floating_point() or not tensor.requires_grad:
        return Argument(name, None, copied)
    leaf = copied.requires_grad_()
    return Argument(name, leaf, leaf)


def _cast(value: Any, double: bool) -> Any:
    return value.double() if double and isinstance(value, Tensor) and value.is_floating_point() else value
