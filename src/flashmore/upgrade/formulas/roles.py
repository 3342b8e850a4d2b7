"""Which values of a function may be the weight, the bias, the eps or the target of a formula."""

import ast
import re
from collections.abc import Iterator, Mapping
from itertools import permutations, product

from flashmore.upgrade.formulas.evaluate import Unknown, constant
from flashmore.upgrade.formulas.formula import Formula, Role
from flashmore.upgrade.source.attributes import UNKNOWN, Attribute, kind_of
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.scopes import last

_EPS = re.compile(r"(?i)(?<![a-z])eps(ilon)?(?![a-z])")
"""In the name of an eps: not in `steps`."""
LARGEST_EPS = 0.1
"""Of the numbers of a source."""


def assigned(
    flow: Flow, formula: Formula, inputs: list[Value], region: tuple[Value, ...]
) -> Iterator[dict[Role, Value | float]]:
    """Every way to give the inputs to the roles; an eps may be a number of the source, or 0."""
    ends: list[tuple[Value | float, ...]] = [()]
    if formula.roles[-1:] == ("eps",) and len(inputs) < len(formula.roles):
        small = [each for each in region if 0 < (known_number(flow, each) or 0) < LARGEST_EPS]
        ends = [*((each,) for each in small), (0.0,)]
    if len(inputs) + len(ends[0]) != len(formula.roles):
        return
    for order, end in product(permutations(inputs), ends):
        found = dict(zip(formula.roles, (*order, *end), strict=True))
        if all(_fits(flow, role, each) for role, each in found.items()) and _are_alike(flow, found):
            yield found


def known_number(flow: Flow, value: Value | float) -> float | None:
    """The number that a value is in the source, through a name or an attribute too."""
    if isinstance(value, float):
        return value
    if value.op not in ("global", "selfattr"):
        found = number(value) if value.op == "const" else None
        return None if found is None else float(found)
    try:
        return float(constant(value, flow))
    except Unknown:
        return None


def _fits(flow: Flow, role: Role, value: Value | float) -> bool:
    if not isinstance(value, Value) or known_number(flow, value) is not None:
        return role == "eps"
    match role:
        case "eps":
            return _EPS.search(_name(value)) is not None and not _is_tensor(value)
        case "weight" | "bias":
            return _vector(flow, value) is not None
    return value.op != "selfattr"


def _are_alike(flow: Flow, given: Mapping[Role, Value | float]) -> bool:
    """Whether weight and bias are made with one size and one dtype: a guard asks the weight's alone."""
    made = {_vector(flow, each) for role, each in given.items() if role in ("weight", "bias")}
    return len(made) <= 1


def _name(value: Value) -> str:
    if value.op.startswith("attr:"):
        return value.op.removeprefix("attr:")
    return str(value.detail) if value.op in ("param", "selfattr") else ""


def _is_tensor(value: Value) -> bool:
    """Whether an attribute may hold a tensor: it is a parameter, a buffer, or made by a call."""
    attribute = value.detail
    if value.op != "selfattr" or not isinstance(attribute, Attribute):
        return False
    made = attribute.owner.assignments(attribute.name) if attribute.owner is not None else []
    return any(isinstance(each, ast.Call) and last(each.func) != "float" for each in made)


_OF_SIZE = {f"torch.{name}" for name in ("ones", "zeros", "empty", "rand", "randn", "Tensor")}


def _vector(flow: Flow, value: Value | float) -> str | None:
    """How a learned tensor of one dimension is made: `n` of `nn.Parameter(torch.ones(n))`; else None."""
    attribute = value.detail if isinstance(value, Value) and value.op == "selfattr" else None
    kind = kind_of(attribute, flow.module) if isinstance(attribute, Attribute) else UNKNOWN
    if kind.name != "parameter" or kind.maybe:
        return None
    match kind.expression:
        case ast.Call(args=[ast.Call(func=func, args=[size, *others], keywords=keywords), *_]):
            made = flow.module.qualified(func)
            listed = False
            if isinstance(size, (ast.Tuple, ast.List)) and len(size.elts) == 1 and made != "torch.Tensor":
                listed, size = True, size.elts[0]  # torch.Tensor takes a list for the numbers themselves
            named = isinstance(size, ast.Name) or (
                size.value != 1  # which broadcasts
                if isinstance(size, ast.Constant)
                else isinstance(size, ast.Attribute) and not size.attr.endswith("shape")
            )
            fills = listed and len(others) == 1 if made == "torch.full" else made in _OF_SIZE and not others
            if fills and named:
                return ast.unparse(ast.Tuple([size, *(each.value for each in keywords)], ast.Load()))
    return None
