"""What operations do to their first argument: one table, from which every check takes its lists.

An operation is named as in the graph of values: a method or function of torch by its name, an attribute as
`attr:mT`, a layer as `layer:GELU`. What a test may run is a list of its own (`verify/allowed.py`), because it
decides about safety and not about meaning.
"""

from enum import Flag, auto


class Result(Flag):
    """What an operation's result has of its first argument."""

    NOTHING = 0
    SHAPE = auto()
    """The same shape."""
    MEMORY = auto()
    """It may be, or be a part of, the same memory."""
    LAYOUT = auto()
    """The order of dimensions in memory, so that `view` fails where it fails for the argument."""
    NUMBERS = auto()
    """The same numbers in another dtype."""


_S, _M, _L, _N = Result.SHAPE, Result.MEMORY, Result.LAYOUT, Result.NUMBERS

_TABLE: tuple[tuple[str, Result, str], ...] = (
    ("cast", _S | _M | _L | _N, "float half bfloat16 double to type type_as"),
    ("cast", _S | _M | _L, "cuda cpu clone"),
    ("cast", _S | _M, "contiguous"),
    ("cast to integers", _S | _M | _L, "bool byte int long"),
    ("move", _M | _L, "transpose permute swapaxes swapdims attr:mT attr:T t"),
    ("reshape", _M | _L, "view view_as squeeze unsqueeze expand unflatten"),
    ("reshape", _M, "reshape reshape_as flatten"),
    ("part", _M | _L, "index chunk split tensor_split unbind narrow select diagonal"),
    ("part", _M, "rearrange"),
    ("alias", _S | _M | _L, "detach identity dropout setitem attr:data"),
    ("alias", _M | _L, "numpy asarray as_tensor from_numpy as_strided"),
    ("pointwise", _S | _L, "neg exp log sigmoid tanh relu gelu silu elu masked_fill clamp abs invert"),
    ("pointwise", _S | _L, "logical_not nan_to_num normalize layer:ReLU layer:GELU layer:SiLU layer:Tanh"),
    ("pointwise", _S | _L, "layer:Sigmoid layer:LeakyReLU layer:ELU layer:PReLU layer:Softplus"),
    ("arithmetic", _L, "add sub mul div pow where and or"),
    ("comparison", _L, "eq ne lt le gt ge"),
    ("normalization", _S, "softmax log_softmax layer_norm rms_norm layer:LayerNorm layer:RMSNorm"),
    ("normalization", _S, "layer:GroupNorm layer:BatchNorm1d layer:BatchNorm2d layer:BatchNorm3d"),
    ("normalization", _S, "layer:InstanceNorm2d"),
    ("new of its kind", _S, "zeros_like ones_like full_like empty_like"),
    ("new of its kind", Result.NOTHING, "new_zeros new_ones new_full new_empty new_tensor"),
    ("new", Result.NOTHING, "zeros ones full empty eye"),
    ("metadata", Result.NOTHING, "attr:shape attr:dtype attr:device attr:ndim attr:requires_grad"),
    ("metadata", Result.NOTHING, "attr:layout attr:is_cuda attr:itemsize size dim numel ndimension"),
    ("metadata", Result.NOTHING, "element_size py:len get_device is_floating_point type_of"),
)


def _of_kind(*kinds: str) -> frozenset[str]:
    return frozenset(name for kind, _, names in _TABLE if kind in kinds for name in names.split())


def _with(result: Result) -> frozenset[str]:
    return frozenset(name for _, has, names in _TABLE if result in has for name in names.split())


CASTS = _of_kind("cast")
INTEGER_CASTS = _of_kind("cast to integers")
MOVES = _of_kind("move")
RESHAPES = _of_kind("reshape")
VIEWS = CASTS | MOVES | RESHAPES
ARITHMETIC = _of_kind("arithmetic")
COMPARISONS = _of_kind("comparison")
NEW = _of_kind("new", "new of its kind")
METADATA = _of_kind("metadata", "new of its kind")
"""What tells or takes no number of its argument."""
SAME_SHAPE = _with(Result.SHAPE)
MAY_SHARE_MEMORY = _with(Result.MEMORY)
KEEPS_LAYOUT = _with(Result.LAYOUT)
CHANGES_DTYPE = _with(Result.NUMBERS)
READS_LAYOUT = {
    "view", "view_as", "as_strided", "stride", "is_contiguous", "data_ptr", "storage_offset", "storage",
    "untyped_storage", "set_", "set",
}  # fmt: skip
"""What can tell one layout of memory from another."""
