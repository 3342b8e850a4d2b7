"""The table of operations, against torch: what it says of each operation's result is what torch does."""

import pytest
import torch
from torch import Tensor, nn

from flashmore.upgrade.source import operations

ARGUMENTS: dict[str, tuple[object, ...]] = {
    "to": (torch.float64,), "type": (torch.float64,), "type_as": (torch.zeros(1, dtype=torch.float64),),
    "transpose": (0, 1), "permute": (1, 0, 2), "swapaxes": (0, 1), "swapdims": (0, 1),
    "view": (6, 4), "view_as": (torch.zeros(6, 4),), "reshape": (4, 6), "reshape_as": (torch.zeros(4, 6),),
    "unsqueeze": (0,), "expand": (2, 3, 4), "unflatten": (2, (2, 2)), "chunk": (2,), "split": (1,),
    "tensor_split": (2,), "narrow": (0, 0, 1), "select": (0, 0), "as_strided": ((2,), (1,)),
    "masked_fill": (torch.zeros(3, 4, dtype=torch.bool), 1.0), "clamp": (0,), "add": (1,), "sub": (1,),
    "mul": (2,), "div": (2,), "pow": (2,), "eq": (1,), "ne": (1,), "lt": (1,), "le": (1,),
    "gt": (1,), "ge": (1,),
    "softmax": (-1,), "log_softmax": (-1,), "layer_norm": ((4,),), "rms_norm": ((4,),), "full_like": (1.0,),
    "new_zeros": (2,), "new_ones": (2,), "new_full": ((2,), 1.0), "new_empty": (2,), "new_tensor": ([1.0],),
}  # fmt: skip
LAYERS = {"LayerNorm": (4,), "RMSNorm": (4,), "GroupNorm": (1, 3)}
ELSEWHERE = {
    "index", "rearrange", "identity", "setitem", "where", "and", "or", "invert", "asarray", "as_tensor",
    "from_numpy", "layer:BatchNorm2d", "layer:BatchNorm3d", "layer:InstanceNorm2d", "t", "attr:T", "zeros",
    "ones", "full", "empty", "eye", "py:len", "type_of", "cuda", "dropout",
}  # fmt: skip
"""What is no method or function of one tensor with three dimensions here."""


def applied(name: str, x: Tensor) -> object:
    """The result of an operation on a tensor."""
    if name.startswith("layer:"):
        layer = getattr(nn, name[6:])(*LAYERS.get(name[6:], (3,) if "Norm" in name else ()))
        return layer(x)
    if name.startswith("attr:"):
        return getattr(x, name[5:])
    arguments = ARGUMENTS.get(name, ())
    for home in (torch.Tensor, torch, nn.functional):
        if hasattr(home, name):
            return getattr(home, name)(x, *arguments)
    raise AssertionError(name)


def names(*groups: frozenset[str]) -> list[str]:
    return sorted(frozenset.union(*groups) - ELSEWHERE)


def tensors(result: object) -> list[Tensor]:
    return [each for each in (result if isinstance(result, tuple) else (result,)) if isinstance(each, Tensor)]


@pytest.mark.parametrize("name", names(operations.SAME_SHAPE))
def test_the_shape_stays(name: str) -> None:
    x = torch.rand(2, 3, 4)
    (result,) = tensors(applied(name, x))
    assert result.shape == x.shape


@pytest.mark.parametrize(
    "name",
    names(
        operations.VIEWS, operations.ARITHMETIC, operations.COMPARISONS, operations.SAME_SHAPE, operations.NEW
    ),
)
def test_only_what_may_share_memory_does(name: str) -> None:
    x = torch.rand(2, 3, 4)
    shares = [
        each.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        for each in tensors(applied(name, x))
    ]
    assert name in operations.MAY_SHARE_MEMORY or not any(shares)


@pytest.mark.parametrize("name", names(operations.SAME_SHAPE - operations.KEEPS_LAYOUT - operations.METADATA))
def test_what_keeps_no_layout_is_contiguous(name: str) -> None:
    x = torch.rand(2, 4, 3).transpose(1, 2)
    (result,) = tensors(applied(name, x))
    assert result.is_contiguous()
