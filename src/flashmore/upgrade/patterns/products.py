"""Products that contract one axis: matmul, @, bmm, mm, baddbmm, einsum, einops, `(q * k).sum`.

A product is written with letters, as einsum writes it. `"..."` stands for leading axes whose number is
unknown.
"""

from dataclasses import dataclass

from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.shapes import Shapes
from flashmore.upgrade.source.sizes import integers, pattern_axes

_MATMUL = {"matmul": None, "bmm": 3, "mm": 2}
MORE = "..."
_MOST_AXES = 64
"""Of a tensor that PyTorch multiplies; more would take the search a time that grows with their square."""


@dataclass(frozen=True, eq=False)
class Product:
    """Two operands and the letters of their axes and of the result's.

    Args:
        value: the product.
        operands: the two tensors.
        letters: the axes of each.
        out: the axes of the result.
        added: what baddbmm adds, with its factor; None otherwise.
    """

    value: Value
    operands: tuple[Value, Value]
    letters: tuple[tuple[str, ...], tuple[str, ...]]
    out: tuple[str, ...]
    added: Value | None = None

    @property
    def contracted(self) -> set[str]:
        """The letters that are summed over."""
        return (set(self.letters[0]) | set(self.letters[1])) - set(self.out)

    def only(self, side: int) -> list[str]:
        """The letters that one operand alone has, and the result too."""
        return [
            each for each in self.letters[side] if each not in self.letters[1 - side] and each in self.out
        ]


def product_of(value: Value, shapes: Shapes) -> Product | None:
    """A value as a product of two tensors: None where it is none."""
    if value.op in _MATMUL and len(value.args) == 2:
        return _matmul(value, value.args, _MATMUL[value.op], shapes)
    if value.op == "baddbmm" and value.args:
        pair = tuple(each for each in (value.get(1, "batch1"), value.get(2, "batch2")) if each is not None)
        return _matmul(value, pair, 3, shapes, added=value.args[0]) if len(pair) == 2 else None
    if value.op == "einsum":
        return _einsum(value, value.args[0], value.args[1:])
    if value.op == "einops.einsum" and len(value.args) == 3:
        return _einsum(value, value.args[2], value.args[:2])
    return None


def _matmul(
    value: Value, operands: tuple[Value, ...], rank: int | None, shapes: Shapes, added: Value | None = None
) -> Product | None:
    ranks = [rank or shapes.rank(each) for each in operands]
    known = [each for each in ranks if each is not None]
    if any(not 2 <= each <= _MOST_AXES for each in known):
        return None
    most = max(known) if known else None
    if len(known) == 1 and known[0] == 2:
        most = None
    if most is None:
        batch: tuple[str, ...] = (MORE,)
        letters = ((*batch, "l", "d"), (*batch, "d", "s"))
    else:
        batch = tuple(f"b{index}" for index in range(most - 2))
        first, second = (batch[most - (each or most) :] for each in ranks)
        letters = ((*first, "l", "d"), (*second, "d", "s"))
    return Product(value, (operands[0], operands[1]), letters, (*batch, "l", "s"), added)


def _einsum(value: Value, equation: Value, operands: tuple[Value, ...]) -> Product | None:
    if len(operands) == 1 and operands[0].op == "tuple":
        operands = operands[0].args
    text = equation.detail if equation.op == "const" else None
    if not isinstance(text, str) or "->" not in text or len(operands) != 2:
        return None
    left, out = text.split("->")
    if left.count(",") != 1:
        return None
    named = value.op == "einops.einsum"
    sides = [_letters(side, named) for side in (*left.split(","), out)]
    if any(side is None or len(set(side)) != len(side) or len(side) > _MOST_AXES for side in sides):
        return None
    first, second, result = (tuple(side or ()) for side in sides)
    return Product(value, (operands[0], operands[1]), (first, second), result)


def _letters(side: str, named: bool) -> list[str] | None:
    if named:
        axes = pattern_axes(side)
        return None if any(each.startswith("(") for each in axes) else axes
    side = side.replace(" ", "").replace(MORE, "\0")
    return [MORE if each == "\0" else each for each in side]


def moved(layout: tuple[str, ...], value: Value) -> tuple[str, ...] | None:
    """The letters after a transposition of the axes: None where that cannot be said."""
    op, args = value.op, value.args
    if op in ("transpose", "swapaxes", "swapdims") and len(args) == 3:
        return _swapped(layout, number(args[1]), number(args[2]))
    if op in ("transpose", "swapaxes", "swapdims") and {"dim0", "dim1"} <= set(value.named):
        return _swapped(layout, number(value.named["dim0"]), number(value.named["dim1"]))
    if op in ("attr:mT", "adjoint"):
        return _swapped(layout, -1, -2)
    if op in ("attr:T", "t"):
        return layout[::-1] if MORE not in layout and len(layout) == 2 else None
    if op == "permute":
        return _permuted(layout, value)
    if op == "rearrange":
        return _rearranged(layout, value)
    return None


def position(layout: tuple[str, ...], index: int | float | None) -> int | None:
    """The place of a dimension in the letters."""
    if not isinstance(index, int):
        return None
    if MORE in layout:
        at = index + len(layout) if index < 0 else None
        return at if at is not None and at > layout.index(MORE) else None
    return index % len(layout) if -len(layout) <= index < len(layout) else None


def _swapped(
    layout: tuple[str, ...], one: int | float | None, two: int | float | None
) -> tuple[str, ...] | None:
    first, second = position(layout, one), position(layout, two)
    if first is None or second is None:
        return None
    letters = list(layout)
    letters[first], letters[second] = letters[second], letters[first]
    return tuple(letters)


def _permuted(layout: tuple[str, ...], value: Value) -> tuple[str, ...] | None:
    order = integers(value.args[1:]) or (integers([value.named["dims"]]) if "dims" in value.named else None)
    if not order:
        return None
    if MORE in layout and len(layout) == 3:
        rank = len(order)
        if order == [*range(rank - 2), rank - 1, rank - 2]:
            return (layout[0], layout[2], layout[1])
        return None
    if len(order) != len(layout) or sorted(each % len(layout) for each in order) != list(range(len(layout))):
        return None
    return tuple(layout[each] for each in order)


def _rearranged(layout: tuple[str, ...], value: Value) -> tuple[str, ...] | None:
    pattern = value.args[1].detail if len(value.args) > 1 else None
    if not isinstance(pattern, str) or "->" not in pattern:
        return None
    left, right = (pattern_axes(side) for side in pattern.split("->"))
    if any(each.startswith("(") for each in (*left, *right)) or sorted(left) != sorted(right):
        return None
    if MORE in layout:
        if len(left) < 3 or left[:-2] != right[:-2]:
            return None
        return layout if left == right else (layout[0], layout[2], layout[1])
    if len(left) != len(layout) or MORE in left:
        return None
    return tuple(layout[left.index(each)] for each in right)
