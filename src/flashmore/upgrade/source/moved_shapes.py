"""The shapes of what is viewed, moved, cut, joined or multiplied."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.sizes import Dims, axis_size, broadcast, integers, pattern_axes, product

if TYPE_CHECKING:
    from flashmore.upgrade.source.shapes import Shapes


def _view(shapes: "Shapes", value: Value) -> Dims | None:
    sizes = value.args[1:]
    alone = len(sizes) == 1 and number(sizes[0]) is None and sizes[0].op != "star"
    known = shapes.sizes(sizes[0]) if alone else shapes.listed(sizes)
    return [f"rest:{value.key}" if each == "-1" else each for each in known] if known else None


def _like(shapes: "Shapes", value: Value) -> Dims | None:
    other = value.get(1, "other")
    return shapes.of(other) if other is not None else None


def _swapped(shapes: "Shapes", value: Value, one: int, two: int) -> Dims | None:
    dims = shapes.of(value)
    if dims is None or not (-len(dims) <= one < len(dims) and -len(dims) <= two < len(dims)):
        return None
    dims = list(dims)
    dims[one], dims[two] = dims[two], dims[one]
    return dims


def _transpose(shapes: "Shapes", value: Value) -> Dims | None:
    order = integers(value.args[1:])
    return _swapped(shapes, value.args[0], *order) if order and len(order) == 2 else None


def _matrix_transpose(shapes: "Shapes", value: Value) -> Dims | None:
    return _swapped(shapes, value.args[0], -1, -2)


def _t(shapes: "Shapes", value: Value) -> Dims | None:
    return _swapped(shapes, value.args[0], 0, 1) if shapes.rank(value.args[0]) == 2 else None


def _permute(shapes: "Shapes", value: Value) -> Dims | None:
    order, dims = integers(value.args[1:]), shapes.of(value.args[0])
    if not order or dims is None or sorted(each % len(dims) for each in order) != list(range(len(dims))):
        return None
    return [dims[each] for each in order]


def _unsqueeze(shapes: "Shapes", value: Value) -> Dims | None:
    dims, at = shapes.of(value.args[0]), number(value.get(1, "dim"))
    rank = shapes.ranks.get(value, 0) if dims is None else len(dims) + 1
    if not isinstance(at, int) or not -rank <= at < rank:
        return None
    dims = dims if dims is not None else [f"{value.args[0].key}#{index}" for index in range(rank - 1)]
    return [*dims[: at % rank], "1", *dims[at % rank :]]


def _squeeze(shapes: "Shapes", value: Value) -> Dims | None:
    dims, at = shapes.of(value.args[0]), number(value.get(1, "dim"))
    if dims is None or not isinstance(at, int) or not -len(dims) <= at < len(dims) or dims[at] != "1":
        return None
    return [each for index, each in enumerate(dims) if index != at % len(dims)]


def _index(shapes: "Shapes", value: Value) -> Dims | None:
    dims = shapes.of(value.args[0])
    index = value.args[1]
    parts = index.args if index.op == "tuple" else (index,)
    if dims is None or any(each.op not in ("slice", "const", "neg") for each in parts):
        return None
    result, position = [], 0
    for part in parts:
        if part.op == "const" and part.detail is None:
            result.append("1")
        elif part.op == "const" and part.detail is Ellipsis:
            rest = len(dims) - sum(e.op == "slice" or isinstance(number(e), int) for e in parts)
            result.extend(dims[position : position + rest])
            position += rest
        elif position < len(dims):
            if part.op == "slice":
                result.append(_sliced(shapes, dims[position], part))
            position += 1
    return result + dims[position:]


def _sliced(shapes: "Shapes", size: str, part: Value) -> str:
    if all(each.op == "const" and each.detail is None for each in part.args):
        return size
    start, stop, step = part.args
    if number(start) in (None, 0) and start.op == "const" and number(step) is None:
        return shapes.size(stop)
    return f"sliced:{part.key}:{size}"


def _item(shapes: "Shapes", value: Value) -> Dims | None:
    """One of the pieces of chunk, split or unbind."""
    whole = value.args[0]
    dims = shapes.of(whole.args[0]) if whole.args else None
    if dims is None:
        return None
    if whole.op == "unbind":
        at = number(whole.get(1, "dim"))
        at = at if isinstance(at, int) else 0
        return [each for index, each in enumerate(dims) if index != at % len(dims)]
    if whole.op in ("chunk", "split", "tensor_split"):
        at = number(whole.get(2, "dim"))
        at = at if isinstance(at, int) else 0
        if not -len(dims) <= at < len(dims):
            return None
        dims = list(dims)
        dims[at] = f"part:{whole.key}"
        return dims
    if whole.op in ("view", "reshape", "permute", "transpose", "rearrange"):
        inner = shapes.of(whole)
        return inner[1:] if inner else None
    return None


def _rearrange(shapes: "Shapes", value: Value) -> Dims | None:
    pattern = value.args[1].detail if len(value.args) > 1 else None
    if not isinstance(pattern, str) or "->" not in pattern or "..." in pattern:
        return None
    left, right = (pattern_axes(side) for side in pattern.split("->"))
    dims = shapes.of(value.args[0])
    names = {name: shapes.size(size) for name, size in value.named.items()}
    if dims is not None and len(dims) == len(left):
        names.update({a: d for a, d in zip(left, dims, strict=True) if not a.startswith("(")})
    own = value.args[0].key
    return [axis_size(each, names, own) for each in right]


def _flatten(shapes: "Shapes", value: Value) -> Dims | None:
    dims = shapes.of(value.args[0])
    start, end = number(value.get(1, "start_dim")), number(value.get(2, "end_dim"))
    if dims is None:
        return None
    first = start % len(dims) if isinstance(start, int) else 0
    last = end % len(dims) if isinstance(end, int) else len(dims) - 1
    return [*dims[:first], product(dims[first : last + 1]), *dims[last + 1 :]]


def _matmul(shapes: "Shapes", value: Value) -> Dims | None:
    left, right = (shapes.of(each) for each in value.args[:2])
    if left is not None and right is None and len(left) > 2:
        right = [*(broadcast([left[:-2], None], value.key) or ()), left[-1], f"{value.args[1].key}#last"]
    elif right is not None and left is None and len(right) > 2:
        left = [*(broadcast([right[:-2], None], value.key) or ()), f"{value.args[0].key}#rows", right[-2]]
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    batch = broadcast([left[:-2], right[:-2]], value.key)
    return None if batch is None else [*batch, left[-2], right[-1]]


def _baddbmm(shapes: "Shapes", value: Value) -> Dims | None:
    pair = [each for each in (value.get(1, "batch1"), value.get(2, "batch2")) if each is not None]
    left, right = (shapes.of(each) for each in pair) if len(pair) == 2 else (None, None)
    return [left[0], left[-2], right[-1]] if left and right and len(left) == len(right) == 3 else None


def _einsum(shapes: "Shapes", value: Value) -> Dims | None:
    text, sizes = value.args[0].detail, dict[str, str]()
    if not isinstance(text, str) or "->" not in text or "." in text:
        return None
    left, out = text.replace(" ", "").split("->")
    for side, operand in zip(left.split(","), value.args[1:], strict=False):
        dims = shapes.of(operand)
        if dims is not None and len(dims) == len(side):
            sizes |= {letter: size for letter, size in zip(side, dims, strict=True) if size != "1"}
    return [sizes.get(letter, f"{value.key}#{index}") for index, letter in enumerate(out)]


def _cat(shapes: "Shapes", value: Value) -> Dims | None:
    parts = value.args[0]
    first = shapes.of(parts.args[0]) if parts.op == "tuple" and parts.args else None
    at = number(value.get(1, "dim"))
    if first is None:
        return None
    at = at if isinstance(at, int) else 0
    return [f"cat:{value.key}" if i == at % len(first) else each for i, each in enumerate(first)]


MOVED: dict[str, Callable[["Shapes", Value], Dims | None]] = {
    "view": _view, "reshape": _view, "transpose": _transpose, "swapaxes": _transpose, "swapdims": _transpose,
    "attr:mT": _matrix_transpose, "t": _t, "attr:T": _t, "permute": _permute, "unsqueeze": _unsqueeze,
    "squeeze": _squeeze, "index": _index, "item": _item, "rearrange": _rearrange,
    "einops.repeat": _rearrange, "einsum": _einsum, "flatten": _flatten, "matmul": _matmul, "bmm": _matmul,
    "mm": _matmul, "baddbmm": _baddbmm, "cat": _cat, "view_as": _like, "reshape_as": _like,
}  # fmt: skip
"""How each operation makes the dimensions of its result; of any other operation they are unknown."""
