"""The lines of a formula, and the call that replaces them, as two functions of the same inputs."""

import ast
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from flashmore.upgrade.emit.words import fresh
from flashmore.upgrade.formulas.evaluate import ROWS, Unknown, constant
from flashmore.upgrade.formulas.formula import Formulas
from flashmore.upgrade.formulas.match import Match
from flashmore.upgrade.formulas.roles import known_number
from flashmore.upgrade.fragment.followed import of_library
from flashmore.upgrade.fragment.functions import FREE, function, names_in
from flashmore.upgrade.fragment.region import parsed
from flashmore.upgrade.site import Fragment, Input
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.scopes import copied

_ROLES = {"weight": "scale", "bias": "bias", "eps": "number", "target": "tensor"}


def fragment(
    flow: Flow, match: Match, formulas: Formulas, before: Sequence[ast.stmt], sources: Mapping[str, str]
) -> Fragment | None:
    """The two functions; None where the lines use something else than their inputs.

    Args:
        flow: the function.
        match: the formula in it.
        formulas: those of the rule.
        before: the statements that compute a part of it.
        sources: the user's text of x and of each role.
    """
    cut = _Cut(flow, match, formulas, before, sources)
    body = [cut.replaced(each) for each in before]
    assert match.root.node is not None
    old = [*body, ast.Return(cut.replaced(match.root.node))]
    words = {role: cut.names.get(id(each), repr(each)) for role, each in match.inputs.items()}
    x = cut.names[id(match.x)]
    call = match.formula.call.format(functional="F", x=x, shape=x, **words)
    new: list[ast.stmt] = [ast.Return(parsed(call))]
    if match.formula.guard:
        new = [ast.If(parsed(match.formula.guard.format(x=x, **words)), new, old)]
    if names_in(old, ast.Load) - cut.stored - {each.name for each in cut.inputs} - FREE:
        return None
    inputs = tuple(cut.inputs)
    return Fragment(inputs, function("old", inputs, old), function("new", inputs, new), formulas.widens)


class _Cut:
    """The inputs, and a copy of the lines with their names."""

    def __init__(
        self, flow: Flow, match: Match, formulas: Formulas, before: Sequence[ast.stmt],
        sources: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.flow = flow
        self.match = match
        self.stored = names_in(before, ast.Store)
        self.names: dict[int, str] = {}
        self.inputs: list[Input] = []
        letters = formulas.axes[match.rank]
        self._input(match.x, "x", sources["x"], "tensor", letters)
        for role, value in match.inputs.items():
            if not isinstance(value, Value):
                continue
            if (written := known_number(flow, value)) is not None:
                self.names[id(value)] = repr(written)
            else:
                axes = {"eps": None, "target": (letters[0], *letters[2:])}.get(role, (letters[-1],))
                dtype = "int" if role == "target" else "float"
                self._input(value, role, sources[role], _ROLES[role], axes, dtype)

    def _input(
        self, value: Value, wanted: str, source: str, role: Any, axes: Any, dtype: Any = "float"
    ) -> None:
        taken = {*self.stored, *(each.name for each in self.inputs), *FREE}
        name = fresh(source if source.isidentifier() else wanted, taken)
        self.names[id(value)] = name
        self.inputs.append(Input(name, source, role, axes, dtype))

    def replaced(self, node: Any) -> Any:
        """A copy with the inputs, constants and libraries in the place of what stands for them."""
        return copied(node, self._stand_in)

    def _stand_in(self, node: ast.AST) -> ast.AST | None:
        if isinstance(node, ast.AnnAssign):
            return ast.Assign([self.replaced(node.target)], self.replaced(node.value))
        value = self.flow.seen.get(node) if isinstance(node, ast.expr) else None
        if value is None or isinstance(getattr(node, "ctx", None), ast.Store):
            return None
        if id(value) in self.names:
            return parsed(self.names[id(value)])
        if value.op == "global" and (name := of_library(str(value.detail))) is not None:
            return parsed(name)
        if value.op in ROWS and isinstance(node, ast.Call):
            return parsed(f"torch.arange({self.names[id(self.match.x)]}.shape[0])")
        if value.op in ("global", "selfattr"):
            with suppress(Unknown):
                return ast.Constant(constant(value, self.flow))
        return None
