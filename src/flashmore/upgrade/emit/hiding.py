"""What is added to scores or hidden from them, where that is simple enough to be an argument of its own."""

import ast
from dataclasses import dataclass

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import step, walk
from flashmore.upgrade.emit.call import Pieces
from flashmore.upgrade.emit.words import factor, is_atom
from flashmore.upgrade.patterns.masks import FINITE, INFINITE, TRIANGLES, is_lower_triangle
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.source.graph import Closure, Condition, Value, number
from flashmore.upgrade.source.nodes import operand
from flashmore.upgrade.source.operations import VIEWS


@dataclass(frozen=True, eq=False)
class Step:
    """One mask or bias, and the test under which it applies."""

    term: Term
    condition: Condition | None


def steps(term: Term) -> list[Step] | None:
    """All masks and biases in order; None where they are not simply one after the other."""
    nothing_added = all(each.product is None or each.product.added is None for each in term.walk())
    if nothing_added and not any(each.kind in ("add", "fill", "loop", "carried") for each in term.walk()):
        return []
    return _steps(term, {})


def _steps(term: Term, known: dict[Term, list[Step] | None]) -> list[Step] | None:
    if term not in known:
        known[term] = _last_steps(term, known)
    return known[term]


def _last_steps(term: Term, known: dict[Term, list[Step] | None]) -> list[Step] | None:
    if term.kind == "product":
        assert term.product is not None
        return None if term.product.added is not None else []
    if term.kind == "phi":
        return _branches(term, known)
    if term.kind in ("loop", "carried", "reshape", "move"):
        return None
    inner = _steps(term.inner[0], known)
    if inner is None:
        return None
    if term.kind == "scale":
        return None if any(each.term.kind == "add" for each in inner) else inner
    if term.kind in ("add", "fill"):
        return None if term.value.inner or term.value.op == "setitem" else [*inner, Step(term, None)]
    return inner


def _branches(term: Term, known: dict[Term, list[Step] | None]) -> list[Step] | None:
    one, two = (_steps(each, known) for each in term.inner)
    if one is None or two is None or term.condition is None or term.condition.node is None:
        return None
    condition = term.condition
    if len(two) > len(one):
        one, two = two, one
        condition = condition.opposite()
    if any(a.term is not b.term for a, b in zip(one, two, strict=False)):
        return None
    more = one[len(two) :]
    if any(each.condition is not None for each in more):
        return None
    return [*two, *(Step(each.term, condition) for each in more)]


@dataclass(frozen=True)
class Keep:
    """Where a fill keeps the score: the text of a boolean tensor, and what it was made from."""

    text: str
    hidden: str


def keep(step: Step, pieces: Pieces) -> Keep:
    """The condition of a fill, as "this key is kept" and as "this key is hidden"."""
    term = step.term
    assert term.other is not None
    node = operand(pieces.flow, term.value.node, term.other)
    text = _read(node, step, pieces)
    assert node is not None
    if "0/1" in term.detail:
        return Keep(f"{factor(text)} != 0", f"{factor(text)} == 0")
    straight, opposite = text, negated(node, text)
    return Keep(straight, opposite) if term.detail[2] else Keep(opposite, straight)


def _read(node: ast.expr | None, step: Step, pieces: Pieces) -> str:
    if node is None:
        raise Refuse("a mask is computed inside a helper")
    if not pieces.stability.holds(node, pieces.at, step.condition):
        raise Refuse("a mask changes before the values are multiplied")
    pieces.emitted.append(node)
    return pieces.words.flat(node)


def negated(node: ast.expr, text: str) -> str:
    """The negation of a boolean tensor's expression."""
    match node:
        case ast.UnaryOp(op=ast.Invert(), operand=inner) if text.startswith("~"):
            rest = text[1:]
            return rest[1:-1] if rest.startswith("(") and rest.endswith(")") and not is_atom(inner) else rest
        case ast.Compare(left=_, ops=[ast.Eq()]) if text.count(" == ") == 1:
            return text.replace(" == ", " != ")
        case ast.Compare(left=_, ops=[ast.NotEq()]) if text.count(" != ") == 1:
            return text.replace(" != ", " == ")
    return f"~{text}" if is_atom(node) else f"~({text})"


def test(step: Step, pieces: Pieces) -> str | None:
    """The text of a step's test, None where it always applies."""
    condition = step.condition
    if condition is None or condition.node is None:
        return None
    stable = pieces.stability.holds(condition.node, pieces.at)
    if not stable and not _still_given(condition, pieces):
        raise Refuse("the condition for a mask changes before the values are multiplied")
    pieces.emitted.append(condition.node)
    return pieces.words.condition(condition)


def _still_given(condition: Condition, pieces: Pieces) -> bool:
    """`mask is not None` stays true where the mask was replaced by a tensor made from it under that test."""
    node = condition.node
    value = pieces.flow.tests.get(id(node))
    if (
        node is None
        or value is None
        or value.op not in ("is", "is not")
        or condition.holds != (value.op == "is not")
    ):
        return False
    names = [
        each
        for each in walk(node)
        if isinstance(each, ast.Name) and pieces.flow.seen.get(each) is value.args[0]
    ]
    if len(names) != 1:
        return False
    now = pieces.flow.before.get(pieces.at, {}).get(names[0].id)
    detail = now.detail if now is not None and now.op == "phi" else None
    return isinstance(detail, Condition) and detail.node is node


def is_causal(found: Attention, step: Step) -> bool:
    """Whether a mask surely hides exactly the keys after each query, for as many keys as queries."""
    term = step.term
    named = found.flow.module.is_builtin("bool", found.flow.function)  # which a test becomes
    if (step.condition is not None and not named) or term.kind != "fill" or term.other is None:
        return False
    triangle = is_lower_triangle(term.other, found.flow.module, found.shapes)
    if triangle is None or triangle is not term.detail[2]:
        return False
    q, k = found.shapes.of(found.q.value), found.shapes.of(found.k.value)
    if q is None or k is None or len(q) != len(found.q.letters) or len(k) != len(found.k.letters):
        return False
    rows, columns = q[found.q.letters.index("l")], k[found.k.letters.index("s")]
    return rows == columns == _triangle_size(term.other, found)


def _triangle_size(value: Value, found: Attention) -> str | None:
    while value.args:
        if value.op == "index":
            parts = value.args[1].args if value.args[1].op == "tuple" else (value.args[1],)
            if parts and parts[-1].op == "slice" and parts[-1].args[1].detail is not None:
                return found.shapes.size(parts[-1].args[1])
        if value.op in TRIANGLES:
            base = value.args[0]
            if base.op == "ones_like":
                return dims[-1] if (dims := found.shapes.of(base.args[0])) else None
            shape = base.args[-1] if base.op != "full" else base.args[0]
            shape = shape.args[-1] if shape.op == "tuple" and shape.args else shape
            return found.shapes.size(shape)
        value = value.args[0]
    return None


_SUMS = {
    "add", "sub", "mul", "div", "index", "phi", "loop", "carried", "element", "masked_fill", "where",
    "item", "neg", "rsub", "repeat", "einops.repeat", "rearrange", "tile", "repeat_interleave", "cat",
    "stack", "triu", "tril",
}  # fmt: skip


_SIZES = {
    "attr:shape", "attr:device", "attr:dtype", "attr:ndim", "size", "dim", "len", "numel", "get_device",
    "arange", "linspace",
}  # fmt: skip
"""What tells of a tensor nothing that it holds."""


def from_caller(value: Value, depth: int = 0) -> bool:
    """Whether what is added may hold a caller's finfo.min: arguments and calls that are given them.

    They are followed through views and sums. A call that is given no caller's tensor, such as `self.bias()`,
    knows no padding, so it hides no row as a whole.
    """
    step()
    if value.op == "param":
        return True
    if value.op == "call":
        return _is_given(value, set())
    if depth > 12 or value.op not in _SUMS | VIEWS:
        return False
    return any(from_caller(each, depth + 1) for each in value.args)


_LOW = -1e3
"""From here on downwards, a number that is added hides keys."""
_FILLED = {"full", "full_like", "new_full"}


def own_low(value: Value, depth: int = 0) -> str:
    """The number by which an addend hides keys, as in `torch.full((T, T), -1e9).triu(1)`; or empty."""
    step()
    constant = number(value)
    if constant is not None and constant <= _LOW:
        return "-inf" if constant == float("-inf") else repr(constant)
    if value.op == "attr:min" or (value.op == "neg" and value.args[0].op == "attr:max"):
        return "finfo.min"
    if depth > 12 or value.op not in _SUMS | VIEWS | _FILLED:
        return ""
    return next(filter(None, (own_low(each, depth + 1) for each in value.args)), "")


def _is_given(value: Value, seen: set[Value]) -> bool:
    """Whether a call may see a caller's tensor: it is given one, or stands in its function."""
    step()
    if value in seen or value.op in _SIZES:
        return False
    seen.add(value)
    if value.op == "closure" and isinstance(value.detail, Closure):
        return value.detail.bound is None and bool(value.detail.names)
    return value.op in ("param", "opaque") or any(_is_given(each, seen) for each in value.inputs())


_POSITIONS = ("bias", "pos", "rel", "alibi", "slope")


def may_hide(value: Value, text: str) -> bool:
    """Whether what is added may hide keys: what a caller gives, unless its name says that it is about
    positions."""
    return from_caller(value) and not any(each in text.lower() for each in _POSITIONS)


def kinds(found: list[Step]) -> set[str]:
    """Which kinds of fill there are."""
    return {str(each.term.detail[0]) for each in found if each.term.kind == "fill"} & {FINITE, INFINITE}
