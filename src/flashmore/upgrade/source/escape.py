"""Whether scores or weights are used by anything but the attention itself, on any branch."""

import ast

from flashmore.upgrade.budget import step
from flashmore.upgrade.source.graph import Condition, Value, key_of
from flashmore.upgrade.source.operations import COMPARISONS, METADATA, SAME_SHAPE, VIEWS

_PASSED_ON = {"phi", "tuple", "item", "loop", "carried", "star"}
_TENSORS = (VIEWS | COMPARISONS | SAME_SHAPE | {"expand_as"}) - {"identity"}
"""What never gives None."""
_LIKE = {"type_as", "to", "view_as", "expand_as", "type", "masked_fill", "isinstance", "py:isinstance"}
_HOW = {
    "return": "returned",
    "store": "stored on an object",
    "opaque": "used in an expression that is not followed",
    "py:print": "printed",
    "setitem": "written into something else",
    "register_hook": "hooked",
    "retain_grad": "kept with its gradient",
    "append": "appended to a list",
}


class Escape(Exception):
    """Scores or weights that are used elsewhere.

    Args:
        how: what happens to them.
        value: where.
    """

    def __init__(self, how: str, value: Value) -> None:
        super().__init__(how)
        self.how = how
        self.value = value


def escapes(
    chain: set[Value], final: Value, around: tuple[Condition, ...], known: list[tuple[Condition, str]],
    tests: dict[int, Value],
) -> list[tuple[Condition, str]]:  # fmt: skip
    """The conditions under which nothing of the chain is used elsewhere, after those that are `known`.

    Args:
        chain: the values between the two products.
        final: the second product.
        around: the conditions under which every softmax of the chain is computed.
        known: the conditions that hold.
        tests: see `Flow`.

    Raises:
        Escape: something always is.
    """
    guards = list(known)
    for value in sorted(chain, key=_place):
        for user, conditions in _uses(value, chain, final):
            own = [each for each in conditions if not any(each.same(other) for other in around)]
            opposite = [each.opposite() for each in own if each.node is not None]
            how = _HOW.get(user.op, f"used by `{user.name()}`")
            facts = {fact(each, tests) for each, _ in guards}
            if any(fact(each, tests) in facts for each in opposite):
                continue
            held = facts | {fact(each, tests) for each in around if each.node is not None}
            usable = [each for each in opposite if fact(each.opposite(), tests) not in held]
            if not usable:
                raise Escape(how, user)
            guards.append((usable[0], f"the scores or weights are {how}"))
    return guards


def fact(condition: Condition, tests: dict[int, Value]) -> tuple[str, bool]:
    """A test by its meaning, so that `x is None` here and `x is not None` there are one test."""
    value = tests.get(id(condition.node))
    if value is None:
        return f"#{id(condition.node)}", condition.holds
    return _said(value, condition.holds, tests)


def excludes(facts: set[tuple[str, bool]], condition: Condition, tests: dict[int, Value]) -> bool:
    """Whether facts rule out what a condition says of several tests: that one of them has another answer."""
    value, holds = tests.get(id(condition.node)), condition.holds
    if value is None or value.op != ("py:or" if holds else "py:and"):
        return False
    return all(_said(each, not holds, tests) in facts for each in value.args)


def _said(value: Value, holds: bool, tests: dict[int, Value]) -> tuple[str, bool]:
    while value.op == "not":
        value, holds = value.args[0], not holds
    if value.op in ("is", "is not", "ne"):
        first, *others = value.args
        op = "eq" if value.op == "ne" else "is"
        asked = _given(first, tests) if op == "is" and _is_none(others[0]) else first
        return key_of(op, (asked, *others)), holds == (value.op == "is")
    return value.key, holds


def _given(value: Value, tests: dict[int, Value]) -> Value:
    """What is None exactly where a value is: of `if x is not None: x = x.view(sizes)` the first x."""
    condition = value.detail
    test = tests.get(id(condition.node)) if value.op == "phi" and isinstance(condition, Condition) else None
    if test is None or test.op not in ("is", "is not") or not _is_none(test.args[1]):
        return value
    assert isinstance(condition, Condition)
    absent, made = value.args if condition.holds == (test.op == "is") else value.args[::-1]
    if absent is test.args[0] and made.op in _TENSORS:
        return _given(absent, tests)
    return value


def _is_none(value: Value) -> bool:
    return value.op == "const" and value.detail is None


def stripped(test: ast.expr) -> tuple[ast.expr, bool]:
    """A test without each `not` in front of it, and whether it is negated."""
    negated = False
    while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, negated = test.operand, not negated
    return test, negated


def _place(value: Value) -> tuple[int, int, int]:
    """An order that is the same every time: rare values first, then as the source has them."""
    return len(value.users), getattr(value.node, "lineno", 0), getattr(value.node, "col_offset", 0)


def _uses(value: Value, chain: set[Value], final: Value) -> list[tuple[Value, tuple[Condition, ...]]]:
    """What uses a value outside the chain, in this round of a loop or a later one, and its conditions.

    The conditions of a later round say nothing about this one.
    """
    found = []
    stack: list[tuple[Value, Value, tuple[Condition, ...], bool]] = [
        (value, user, (), False) for user in value.users
    ]
    seen: set[tuple[Value, bool]] = set()
    while stack:
        step()
        source, user, before, later = stack.pop()
        conditions = () if later else (*before, *_choice(source, user), *user.conditions)
        returns = later and user in chain and source not in chain
        known = user in chain or user is final or (user, later) in seen
        if (known and not returns) or _only_metadata(source, user):
            continue
        seen.add((user, later))
        if returns:
            found.append((user, conditions))
        elif user.op in _PASSED_ON and not (user.op == "tuple" and not user.users):
            stack.extend((user, each, conditions, later) for each in user.users)
            if user.op == "loop" and isinstance(user.detail, Value):
                stack.extend((user.detail, each, (), True) for each in user.detail.users)
        elif user.op != "tuple" or user.users:
            found.append((user, conditions))
    return found


def _choice(source: Value, user: Value) -> tuple[Condition, ...]:
    """The condition under which a join takes the value."""
    condition = user.detail
    if user.op != "phi" or not isinstance(condition, Condition) or len(set(user.args)) == 1:
        return ()
    return (condition if user.args[0] is source else condition.opposite(),)


def _only_metadata(source: Value, user: Value) -> bool:
    if user.op == "type" and len(user.args) == 1 and not user.named:
        return True
    if user.op in METADATA or user.op in ("is", "is not", "py:isinstance", "finfo", "assert"):
        return True
    return user.op in _LIKE and bool(user.args) and user.args[0] is not source
