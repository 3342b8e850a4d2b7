"""Which values of a function are a known formula of another value."""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from flashmore.upgrade.budget import step
from flashmore.upgrade.formulas.evaluate import OPERATIONS, ROWS, SAME, Evaluation, Unknown, constant
from flashmore.upgrade.formulas.formula import Formula, Formulas, Role
from flashmore.upgrade.formulas.roles import assigned, known_number
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.shapes import Shapes
from flashmore.upgrade.source.written import WrittenSoftmax

MOST_VALUES = 60
"""Of the expressions that a formula is written with; the longest spelling known has 25."""
MOST_INPUTS = 3
"""Besides x."""
DEEPEST_NUMBER = 5
"""Operations of which a constant is made: `torch.sqrt(torch.tensor(2.0 / math.pi))`."""
EPS = 0.37
"""For an eps that is not known: large, so that its place in the formula shows."""


@dataclass(frozen=True)
class Match:
    """A value that is a formula of x.

    Args:
        root: the value.
        x: the tensor.
        formula: what it is.
        inputs: the further inputs by role; a number of the source as itself.
        region: every value that the root is computed from, x excluded.
        tensors: those of them that depend on x.
        rank: the smallest number of dimensions of x for which it holds.
    """

    root: Value
    x: Value
    formula: Formula
    inputs: Mapping[Role, Value | float]
    region: tuple[Value, ...]
    tensors: tuple[Value, ...]
    rank: int


def matches(flow: Flow, formulas: Formulas, can_be_written: Callable[[Match], bool]) -> Iterator[Match]:
    """The largest expressions of a function that are one of the formulas.

    Args:
        flow: the function.
        formulas: those of a rule.
        can_be_written: of a larger expression that cannot, a smaller one is preferred that can.
    """
    shapes = Shapes(flow)
    taken: set[Value] = set()
    others: list[Match] = []
    for root in reversed(flow.values):
        if root in taken or not isinstance(root.node, ast.expr) or not _is_computed(root):
            continue
        cone = _cone(root)
        if cone is None or not any(value.op in formulas.needs for value in cone):
            continue
        found = _match(flow, shapes, root, cone, formulas)
        if found is not None and not can_be_written(found):
            others.append(found)
        elif found is not None:
            taken.update(found.region)
            yield found
    for other in others:
        if taken.isdisjoint(other.tensors):
            taken.update(other.region)
            yield other


def _is_computed(value: Value) -> bool:
    """Whether it may be a part of a formula; a cast is one of a number alone, else it makes an input."""
    if value.op in SAME and not (value.args and _is_number(value.args[0], DEEPEST_NUMBER)):
        return False
    return value.op in OPERATIONS and not value.inplace and not value.inner


def _is_number(value: Value, depth: int) -> bool:
    """Whether a value is computed from numbers alone."""
    step()
    if value.op in ("const", "global", "selfattr"):
        return True
    known = depth > 0 and value.op in OPERATIONS and bool(value.args)
    return known and all(_is_number(each, depth - 1) for each in value.inputs())


def _cone(root: Value) -> list[Value] | None:
    """All values that may belong to a formula and those that they start from, the nearest first."""
    found, ahead = {root: None}, [root]
    for value in ahead:
        step()
        if len(found) > MOST_VALUES:
            return None
        if _is_computed(value):
            more = [each for each in _read(value) if each not in found]
            found.update(dict.fromkeys(more))
            ahead += more
    return list(found)


def _read(value: Value) -> list[Value]:
    """What the numbers of a value come from: not the dtype of a cast, nor the number of all rows."""
    if value.op in ROWS:
        return []
    if isinstance(value.detail, WrittenSoftmax):  # whose parts fall away with it
        return [*value.inputs(), *value.detail.parts]
    return [value.args[0]] if value.op in SAME and value.args else list(value.inputs())


def _match(flow: Flow, shapes: Shapes, root: Value, cone: list[Value], formulas: Formulas) -> Match | None:
    for x in cone[1:]:
        if x.op in ("const", "global", "tuple", "slice") or x.inner:
            continue
        between = _between(root, x)
        if between is None:
            continue
        region, tensors = between
        if any(_takes_numbers(flow, value) for value in tensors):
            continue
        if not any(value.op in formulas.needs for value in region):
            continue
        inputs = _inputs(flow, region, x)
        if inputs is None:
            continue
        axes = {found for each in region for found in (number(each), known_number(flow, each))}
        for formula in formulas.known:
            if formula.axis is not None and formula.axis not in axes:
                continue
            for given in assigned(flow, formula, inputs, region):
                ranks = _agreeing(flow, shapes, root, x, formula, given, formulas)
                if ranks:
                    rank = min(ranks, key=lambda rank: abs(rank - 3))
                    return Match(root, x, formula, given, region, tensors, rank)
    return None


def _between(root: Value, x: Value) -> tuple[tuple[Value, ...], tuple[Value, ...]] | None:
    """All values beneath the root, in the order in which they are read, and those that depend on x.

    None where there are none.
    """
    depends: dict[Value, bool] = {x: True}

    def visit(value: Value) -> bool:
        if value not in depends:
            step()
            depends[value] = False
            inside = [visit(each) for each in _read(value)] if _is_computed(value) else []
            depends[value] = any(inside)
        return depends[value]

    if not visit(root):
        return None
    region = tuple(each for each in depends if each is not x)
    return region, tuple(each for each in region if depends[each])


def _takes_numbers(flow: Flow, value: Value) -> bool:
    """Whether it is a function of Python's, which takes no tensor: `math.tanh(x)`."""
    node = value.node
    return isinstance(node, ast.Call) and flow.module.qualified(node.func).startswith(("math.", "cmath."))


def _inputs(flow: Flow, region: tuple[Value, ...], x: Value) -> list[Value] | None:
    """What a region reads besides x and constants."""
    found = []
    for value in region:
        if _is_computed(value) or value.op == "const":
            continue
        if value.op not in ("global", "selfattr"):
            found.append(value)
            continue
        try:
            constant(value, flow)
        except Unknown:
            found.append(value)
    return found if len(found) <= MOST_INPUTS and x not in found else None


def _agreeing(
    flow: Flow, shapes: Shapes, root: Value, x: Value, formula: Formula,
    given: Mapping[Role, Value | float], formulas: Formulas,
) -> list[int]:  # fmt: skip
    """The numbers of dimensions for which the lines compute the formula; none where they ever differ."""
    rank = shapes.rank(x)
    found = []
    for sample, classes in product(formulas.samples, (-1, 1)):
        if classes == 1 and ("target" not in given or sample.ndim < 3):
            continue
        if rank is not None and sample.ndim != rank:
            continue
        arrays: dict[str, Any] = {}
        for role, each in given.items():
            written = known_number(flow, each)
            arrays[role] = _made(role, sample, classes) if written is None else written
        known = {each: arrays[role] for role, each in given.items() if isinstance(each, Value)}
        try:
            got = Evaluation(flow, {x: sample, **known}, len(sample)).of(root)
        except Unknown:
            continue
        try:
            with np.errstate(all="ignore"):
                wanted = formula.compute(sample, **arrays)
        except ValueError:  # it has no such axis, or takes no such classes
            return []
        if not _equal(got, wanted, formula.tolerance):
            return []
        found.append(sample.ndim)
    return found if rank is not None or len(set(found)) >= formulas.least else []


def _made(role: Role, sample: Any, classes: int) -> Any:
    """An array, or a number, for a role beside x; of class numbers one for each place but on one axis."""
    match role:
        case "eps":
            return EPS
        case "target":
            shape = np.delete(sample.shape, classes)
            return (np.arange(np.prod(shape)) * 7 % min(sample.shape[classes], 5)).reshape(shape)
    return np.cos(np.arange(sample.shape[-1]) * (2.3 if role == "weight" else 1.1)) + 0.2


def _equal(got: Any, wanted: Any, tolerance: float) -> bool:
    """Whether two arrays have one shape, and values that lie close together."""
    if not isinstance(got, np.ndarray | np.floating) or np.shape(got) != np.shape(wanted):
        return False
    if not np.isfinite(got).all():
        return False
    return bool((np.abs(got - wanted) <= tolerance * np.maximum(np.abs(wanted), 1)).all())
