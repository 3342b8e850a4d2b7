"""The lines of a formula, and the call that replaces them, as two functions of the same inputs."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from flashmore.upgrade.emit.words import fresh
from flashmore.upgrade.formulas.evaluate import ROWS, Unknown, constant
from flashmore.upgrade.formulas.formula import Formulas
from flashmore.upgrade.formulas.match import Match, known_number
from flashmore.upgrade.fragment.followed import of_library
from flashmore.upgrade.fragment.functions import FREE
from flashmore.upgrade.site import Fragment, Input
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Value

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
    new: list[ast.stmt] = [ast.Return(ast.parse(call, mode="eval").body)]
    if match.formula.guard:
        test = ast.parse(match.formula.guard.format(x=x, **words), mode="eval").body
        new = [ast.If(test, new, old)]
    loaded = {
        node.id
        for each in old
        for node in ast.walk(each)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    if loaded - cut.stored - {each.name for each in cut.inputs} - FREE:
        return None
    inputs = ", ".join(each.name for each in cut.inputs)
    return Fragment(
        tuple(cut.inputs), _function("old", inputs, old), _function("new", inputs, new), formulas.widens
    )


def _function(name: str, inputs: str, body: list[ast.stmt]) -> str:
    lines = ast.unparse(ast.fix_missing_locations(ast.Module(body, []))).split("\n")
    return "\n".join([f"def {name}({inputs}):", *(f"    {line}" for line in lines), ""])


class _Cut:
    """The inputs, and a copy of the lines with their names."""

    def __init__(
        self, flow: Flow, match: Match, formulas: Formulas, before: Sequence[ast.stmt],
        sources: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.flow = flow
        self.match = match
        self.stored = {
            node.id
            for each in before
            for node in ast.walk(each)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
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
                axes = (
                    None
                    if role == "eps"
                    else (letters[0], *letters[2:])
                    if role == "target"
                    else (letters[-1],)
                )
                self._input(
                    value, role, sources[role], _ROLES[role], axes, "int" if role == "target" else "float"
                )

    def _input(
        self, value: Value, wanted: str, source: str, role: Any, axes: Any, dtype: Any = "float"
    ) -> None:
        name = fresh(
            source if source.isidentifier() else wanted,
            {*self.stored, *(each.name for each in self.inputs), *FREE},
        )
        self.names[id(value)] = name
        self.inputs.append(Input(name, source, role, axes, dtype))

    def replaced(self, node: Any) -> Any:
        """A copy with the inputs, constants and libraries in the place of what stands for them."""
        value = self.flow.seen.get(node) if isinstance(node, ast.expr) else None
        if value is not None and not isinstance(getattr(node, "ctx", None), ast.Store):
            if id(value) in self.names:
                return ast.parse(self.names[id(value)], mode="eval").body
            if value.op == "global" and (name := of_library(str(value.detail))) is not None:
                return ast.parse(name, mode="eval").body
            if value.op in ROWS and isinstance(node, ast.Call):
                rows = f"torch.arange({self.names[id(self.match.x)]}.shape[0])"
                return ast.parse(rows, mode="eval").body
            if value.op in ("global", "selfattr"):
                try:
                    return ast.Constant(constant(value, self.flow))
                except Unknown:
                    pass
        fields: dict[str, object] = {}
        for name, each in ast.iter_fields(node):
            if isinstance(each, list):
                fields[name] = [self.replaced(e) if isinstance(e, ast.AST) else e for e in each]
            else:
                fields[name] = self.replaced(each) if isinstance(each, ast.AST) else each
        if isinstance(node, ast.AnnAssign):
            return ast.Assign([fields["target"]], fields["value"])  # type: ignore[list-item, arg-type]
        return type(node)(**fields)
