"""What a value of the graph is for given arrays, computed with NumPy in float64.

Only operations on this list are computed; anything else is `Unknown`, so it can only be an input.
"""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flashmore.upgrade.budget import step
from flashmore.upgrade.source.attributes import Attribute
from flashmore.upgrade.source.expressions import OPERATORS
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.operations import CASTS, INTEGER_CASTS
from flashmore.upgrade.source.state import State
from flashmore.upgrade.source.written import WrittenSoftmax

CONSTANTS = {
    "math.pi": math.pi, "numpy.pi": math.pi, "torch.pi": math.pi, "math.e": math.e, "numpy.e": math.e,
}  # fmt: skip
SAME = CASTS | INTEGER_CASTS | {"tensor", "scalar_tensor", "as_tensor", "array", "py:float", "asarray"}
"""What changes the type of a number or an array, and no value."""
ROWS = ("arange", "py:range")
"""The numbers of all rows, as the first index beside the class of each."""


class Unknown(Exception):
    """A value that cannot be computed from what is given."""


def softmax(x: Any, axis: int) -> Any:
    """Along one axis, without overflow."""
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x: Any, axis: int) -> Any:
    """Along one axis, without underflow."""
    return x - logsumexp(x, axis)


def logsumexp(x: Any, axis: int) -> Any:
    """Along one axis, which stays with length 1."""
    largest = x.max(axis, keepdims=True)
    return largest + np.log(np.exp(x - largest).sum(axis, keepdims=True))


def at_classes(x: Any, target: Any) -> Any:
    """The entries at class numbers, of which dimension 1 has one for each."""
    if target.shape != x.shape[:1] + x.shape[2:]:
        raise ValueError("no class for each row")
    return np.take_along_axis(x, np.expand_dims(target, 1), 1).squeeze(1)


erf: Callable[[Any], Any] = np.vectorize(math.erf, otypes=[float])
_POINTWISE: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "subtract": np.subtract, "mul": np.multiply, "multiply": np.multiply,
    "div": np.true_divide, "divide": np.true_divide, "true_divide": np.true_divide, "pow": np.power,
    "power": np.power, "neg": np.negative, "negative": np.negative, "pos": np.positive, "tanh": np.tanh,
    "erf": erf, "erfc": lambda x: 1 - erf(x), "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x, "exp": np.exp, "log": np.log, "square": np.square, "abs": np.abs,
    "py:abs": np.abs, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "rsub": lambda x, y: y - x,
    "floordiv": np.floor_divide,
}  # fmt: skip
_ALONG = ("mean", "sum", "var", "std", "amax", "max", "norm", "logsumexp", "var_mean", "std_mean")
_SHAPED = ("softmax", "log_softmax", "index", "item", "gather", "squeeze", "unsqueeze", "nll_loss")
OPERATIONS = {*_POINTWISE, *_ALONG, *_SHAPED, *SAME, *ROWS, "tuple", "slice"}
"""What may be computed of an array."""


class Evaluation:
    """The values of a function for given arrays.

    Args:
        state: the function that was read.
        given: the inputs.
        rows: how many rows there are, for `arange(n)` of an unknown n.
    """

    def __init__(self, state: State, given: Mapping[Value, Any], rows: int = 0) -> None:
        self.state = state
        self.known: dict[Value, Any] = dict(given)
        self.rows = rows

    def of(self, value: Value) -> Any:
        """The array or the number.

        Raises:
            Unknown: it depends on something that is not given, or cannot be computed.
        """
        if value not in self.known:
            step()
            try:
                with np.errstate(all="ignore"):
                    self.known[value] = self._made(value)
            except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
                raise Unknown(str(error)) from None
        return self.known[value]

    def _made(self, value: Value) -> Any:
        if value.inplace:
            raise Unknown(value.op)
        if isinstance(value.detail, WrittenSoftmax):
            return softmax(self.of(value.args[0]), self._axis(value.get(1, "dim")))
        if value.op == "const":
            return value.detail
        if value.op in ("global", "selfattr"):
            return constant(value, self.state)
        if value.op == "tuple":
            return tuple(self.of(each) for each in value.args)
        if value.op in ROWS:
            return self._rows(value)
        if value.op in SAME:
            found = self.of(value.args[0])
            if not isinstance(found, tuple):
                return found
        if value.op in _POINTWISE and not value.named:
            numbers = [self.of(each) for each in value.args]
            most = getattr(_POINTWISE[value.op], "nin", len(numbers))  # a further one NumPy would store to
            if len(numbers) > most or any(isinstance(each, (tuple, bool)) for each in numbers):
                raise Unknown(value.op)
            return _POINTWISE[value.op](*numbers)
        if value.op in _ALONG:
            return self._along(value)
        if value.op in _SHAPED:
            return self._shaped(value)
        raise Unknown(value.op)

    def _rows(self, value: Value) -> Any:
        """`range(n)`, where a size that is no number of the source is taken for that of all rows."""
        size = value.args[-1]
        made = self.state.module.qualified(value.node.func) if isinstance(value.node, ast.Call) else ""
        if made.startswith("numpy."):
            raise Unknown("rows of NumPy, whose classes may be an array, too")
        if any(number(each) != 0 for each in value.args[:-1]) or len(value.args) > 2:
            raise Unknown("some of the rows")
        if (written := number(size)) is not None:
            return np.arange(written)
        if size.op in _POINTWISE or set(value.named) - {"device", "dtype"}:
            raise Unknown("some of the rows")
        return np.arange(self.rows)

    def _axis(self, value: Value | None) -> Any:
        axis = None if value is None else self.of(value)
        if isinstance(axis, np.integer):
            return int(axis)
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, (int, tuple))):
            raise Unknown("an axis")
        return axis

    def _along(self, value: Value) -> Any:
        """What reduces an array along some axes."""
        x, *rest = value.args
        named = dict(value.named)

        def given(*names: str) -> Value | None:
            found = next((named.pop(name) for name in names if name in named), None)
            return rest.pop(0) if found is None and rest else found

        power = given("p", "ord") if value.op == "norm" else None
        if power is not None and self.of(power) != 2:
            raise Unknown("another norm")
        axis = self._axis(given("dim", "axis"))
        unbiased = given("correction", "unbiased") if value.op.startswith(("var", "std")) else None
        keep = given("keepdim", "keepdims")
        if named or rest:
            raise Unknown(value.op)
        options = {"axis": axis, "keepdims": keep is not None and bool(self.of(keep))}
        return _reduced(value.op, self.of(x), int(1 if unbiased is None else self.of(unbiased)), options)

    def _shaped(self, value: Value) -> Any:
        x = self.of(value.args[0])
        named = dict(value.named)
        dim = named.pop("dim", None) or (value.args[1] if len(value.args) > 1 else None)
        match value.op:
            case "softmax" | "log_softmax" if not named and (axis := self._axis(dim)) is not None:
                return (softmax if value.op == "softmax" else log_softmax)(x, axis)
            case "item" if isinstance(x, tuple) and isinstance(value.detail, int):
                return x[value.detail]
            case "index":
                return x[self._index(value.args[1], x)]
            case "gather" if not named or set(named) == {"index"}:
                index = self.of(named["index"] if named else value.args[2])
                return np.take_along_axis(x, _integers(index), self._axis(dim))
            case "squeeze" if not named:
                return np.squeeze(x, self._axis(dim))
            case "unsqueeze" if not named:
                return np.expand_dims(x, self._axis(dim))
            case "nll_loss" if set(named) <= {"reduction", "target"}:
                target = self.of(named["target"] if "target" in named else value.args[1])
                how = self.of(named["reduction"]) if "reduction" in named else "mean"
                if len(value.args) + ("target" in named) != 2 or how not in ("mean", "sum", "none"):
                    raise Unknown(value.op)
                found = -at_classes(x, _integers(target))
                return found if how == "none" else getattr(found, how)()
        raise Unknown(value.op)

    def _index(self, index: Value, x: Any) -> Any:
        """`[rows, classes]`, `[:, None]`, and the number of a piece."""
        parts = index.args if index.op == "tuple" else (index,)
        if isinstance(x, tuple):
            return self.of(index)
        found: list[Any] = []
        for each in parts:
            if each.op == "slice" and all(part.op == "const" and part.detail is None for part in each.args):
                found.append(slice(None))
            else:
                at = self.of(each)
                found.append(None if at is None else _integers(at))
        return tuple(found)


def _integers(index: Any) -> Any:
    if not np.issubdtype(np.asarray(index).dtype, np.integer):
        raise Unknown("an index that is no integer")
    return index


def _reduced(op: str, x: Any, correction: int, options: dict[str, Any]) -> Any:
    if not isinstance(x, np.ndarray):
        raise Unknown("a reduction of a number")
    match op:
        case "mean" | "sum":
            return getattr(x, op)(**options)
        case "amax" | "max":
            found = x.max(**options)
            return (found, None) if op == "max" and options["axis"] is not None else found
        case "var" | "std":
            return getattr(x, op)(ddof=correction, **options)
        case "var_mean" | "std_mean":
            return getattr(x, op[:3])(ddof=correction, **options), x.mean(**options)
        case "norm":
            return np.sqrt(np.square(x).sum(**options))
        case "logsumexp" if isinstance(options["axis"], int):
            found = logsumexp(x, options["axis"])
            return found if options["keepdims"] else found.squeeze(options["axis"])
    raise Unknown(op)


def constant(value: Value, state: State) -> Any:
    """A number that a name or an attribute stands for, wherever it is set.

    Raises:
        Unknown: it is set in several ways, or is no number.
    """
    if value.op == "selfattr":
        attribute = value.detail
        assert isinstance(attribute, Attribute)
        owner, name = attribute.owner, attribute.name
        made = owner.assignments(name) if owner is not None else []
        if owner is None or len(made) != 1 or state.module.is_replaced(name):
            raise Unknown(str(attribute))
        others = (each.own_assignments.keys() | each.own_methods for each in owner.below(state.module))
        if owner.replaces(name, state.module) or any(name in each for each in others):
            raise Unknown(str(attribute))
        return constant_of(made[0], state.module)
    name = str(value.detail)
    if name in CONSTANTS:
        return CONSTANTS[name]
    if name in state.module.constants and "." not in name:
        return constant_of(state.module.constants[name], state.module)
    raise Unknown(name)


def constant_of(node: ast.expr, module: Module) -> Any:
    """The number that an expression outside of the function is.

    Raises:
        Unknown: it is not known from the syntax.
    """
    step()
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.Pow() as by, right):
            function = _POINTWISE[OPERATORS[type(by)]]
            return _number(function, constant_of(left, module), constant_of(right, module))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -constant_of(operand, module)
        case ast.Attribute() | ast.Name() if (full := module.qualified(node)) in CONSTANTS:
            return CONSTANTS[full]
        case ast.Call(func=func, args=[argument], keywords=[]):
            last = module.qualified(func)
            if last in ("math.sqrt", "numpy.sqrt", "torch.sqrt"):
                return _number(np.sqrt, constant_of(argument, module))
            if last == "torch.tensor":
                return constant_of(argument, module)
    raise Unknown("no constant")


def _number(function: Callable[..., Any], *numbers: Sequence[float]) -> float:
    try:
        with np.errstate(all="ignore"):
            return float(function(*map(float, numbers)))  # type: ignore[arg-type]
    except (ArithmeticError, ValueError, TypeError) as error:
        raise Unknown(str(error)) from None
