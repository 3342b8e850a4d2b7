"""A function as a graph of values: what was computed from what, under which conditions."""

import ast
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashmore.upgrade.source.module import Module

PRODUCTS = {"matmul", "bmm", "mm", "baddbmm", "einsum", "einops.einsum", "softmax"}


@dataclass(frozen=True, eq=False)
class Condition:
    """A test that holds (or not) where something is computed.

    `node` is None where the test cannot be written down in the analysed function: inside a helper, a loop, or
    an exception handler.
    """

    node: ast.expr | None
    holds: bool
    statement: ast.stmt | None = None

    def same(self, other: "Condition") -> bool:
        """Whether both are one test with one answer."""
        return self.node is not None and self.node is other.node and self.holds == other.holds

    def opposite(self) -> "Condition":
        """The same test with the other answer."""
        return Condition(self.node, not self.holds, self.statement)


@dataclass(eq=False)
class Value:
    """One value: an operation on other values.

    Args:
        op: the operation: "matmul", "softmax", "attr:shape", "phi", "param", ...
        args: what it is computed from, in order; for a method, the object comes first.
        named: keyword arguments.
        node: the expression in the analysed function that makes it: for what happens in a helper, the call.
        statement: the statement that the expression stands in.
        conditions: the tests that hold where it is made.
        detail: what else the operation needs: a constant, a name, a closure.
        inner: whether it is made inside a helper, where nothing can be edited.
        inplace: whether it changes its first argument.
    """

    op: str
    args: tuple["Value", ...] = ()
    named: dict[str, "Value"] = field(default_factory=dict)
    node: ast.AST | None = None
    statement: ast.stmt | None = None
    conditions: tuple[Condition, ...] = ()
    detail: object = None
    inner: bool = False
    inplace: bool = False
    users: list["Value"] = field(default_factory=list)
    of_product: bool = field(init=False)
    """Whether scores or weights may have gone into it."""
    key: str = field(init=False)
    """A text that is equal for values computed in the same way from the same things."""

    def __post_init__(self) -> None:
        for value in self.inputs():
            value.users.append(self)
        self.of_product = self.op in PRODUCTS or any(each.of_product for each in self.inputs())
        self.key = _key(self)

    def inputs(self) -> Iterator["Value"]:
        """Everything that it is computed from."""
        yield from self.args
        yield from self.named.values()

    def get(self, position: int, name: str) -> "Value | None":
        """The argument at a position or of a name."""
        return self.args[position] if position < len(self.args) else self.named.get(name)

    def name(self) -> str:
        """What a message calls it: the function that the source calls, or the operation."""
        if self.op != "call":
            return self.op.split(":")[-1]
        if self.detail:
            return str(self.detail)
        return ast.unparse(self.node.func) if isinstance(self.node, ast.Call) else self.op

    def __repr__(self) -> str:
        return f"{self.op}({', '.join(value.op for value in self.inputs())})"


@dataclass(frozen=True, eq=False)
class Closure:
    """A function whose body is known: a def, a method or a lambda, its module, and the names that it sees."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    module: "Module"
    names: dict[str, Value]
    bound: Value | None = None
    given: tuple[Value, ...] = ()
    given_named: tuple[tuple[str, Value], ...] = ()


def number(value: Value | None) -> int | float | None:
    """The Python number that a value is known to be."""
    if value is None:
        return None
    if value.op == "const" and isinstance(value.detail, (int, float)) and not isinstance(value.detail, bool):
        return value.detail
    if value.op == "neg":
        inner = number(value.args[0])
        return None if inner is None else -inner
    if value.op == "pow" and len(value.args) == 2:
        base, power = number(value.args[0]), number(value.args[1])
        small = base is not None and power is not None and 0 < base <= 1e4 and abs(power) <= 9
        return base**power if small else None  # type: ignore[operator]
    return None


_THEMSELVES = ("param", "phi", "loop", "carried", "call", "closure", "opaque")
"""Values that are equal to no other."""
_LONGEST_KEY = 200


def _key(value: Value) -> str:
    """Made from the keys of what it is computed from, which have bounded lengths."""
    if value.op == "const":
        huge = isinstance(value.detail, int) and abs(value.detail) >= 10**100
        text = hex(value.detail) if huge else repr(value.detail)  # type: ignore[arg-type]
    elif value.op in _THEMSELVES:
        return f"{value.op}#{id(value)}"
    elif value.op in ("global", "selfattr"):
        text = f"{value.op}:{value.detail}"
    else:
        named = ",".join(f"{name}={each.key}" for name, each in sorted(value.named.items()))
        return key_of(
            value.op, value.args, named, value.detail if isinstance(value.detail, (str, int)) else ""
        )
    return _short(value.op, text)


def key_of(op: str, args: Sequence[Value], named: str = "", detail: str | int = "") -> str:
    """The key of a value that is made so."""
    return _short(op, f"{op}({','.join(each.key for each in args)};{named};{detail})")


def _short(op: str, text: str) -> str:
    if len(text) <= _LONGEST_KEY:
        return text
    return f"{op}#{hashlib.blake2b(text.encode(errors='surrogatepass'), digest_size=16).hexdigest()}"
