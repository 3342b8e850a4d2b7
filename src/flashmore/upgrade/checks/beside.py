"""A hand-written branch beside a fused one: which test chooses between them, and whether it is a switch."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flashmore.upgrade.source.escape import fact, stripped
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Condition, Value
from flashmore.upgrade.text import shown

OF_TORCH = {"scaled_dot_product_attention", "multi_head_attention_forward", "flex_attention"}
"""Always there, unlike xFormers' and flash-attn's functions, beside which the hand-written lines stand in."""
_JOINED = {"not", "py:and", "py:or"}


@dataclass(frozen=True)
class Beside:
    """A call of torch's fused kernels where the hand-written lines do not run.

    Args:
        line: where it stands.
        test: what chooses, with the answer that selects the fused call.
        switch: whether the test asks for anything but which arguments were given.
    """

    line: int
    test: Condition
    switch: bool

    def said(self, flow: Flow) -> tuple[str, str]:
        """The reason why the hand-written lines stay, and the advice."""
        assert self.test.node is not None
        text = ast.unparse(self.test.node)
        reason = (
            f"line {self.line} is fused, and runs where `{text}` is {'true' if self.test.holds else 'false'}"
        )
        node, negated = stripped(self.test.node)
        if not isinstance(node, (ast.Name, ast.Attribute)):
            return reason, "prefer that branch"
        what = "turn on" if self.test.holds != negated else "turn off"
        return reason, f"{what} `{ast.unparse(node)}`{_set_in(node, flow)}"


def beside(hand: Sequence[Value], fused: Sequence[Value], flow: Flow) -> Beside | None:
    """The fused call of torch's on another branch than the hand-written lines, if there is one."""
    held = [each for value in hand for each in value.conditions if each.node is not None]
    facts = {fact(each, flow.tests) for each in held}
    for call in fused:
        for condition in call.conditions:
            if condition.node is not None and fact(condition.opposite(), flow.tests) in facts:
                test = flow.tests.get(id(condition.node))
                switch = test is None or not all(map(_asks_for_an_argument, _parts(test)))
                return Beside(getattr(call.node, "lineno", 0), condition, switch)
    return None


def _parts(test: Value) -> Iterator[Value]:
    if test.op not in _JOINED:
        yield test
        return
    for each in test.args:
        yield from _parts(each)


def _asks_for_an_argument(test: Value) -> bool:
    """`mask is None`."""
    given, nothing = (*test.args, test, test)[:2]
    return test.op in ("is", "is not") and given.op == "param" and nothing.op == "const"


def _set_in(node: ast.expr, flow: Flow) -> str:
    """Where a switch gets its value."""
    made: list[ast.expr] = []
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self" and flow.owner is not None:
        made = flow.owner.own_assignments.get(node.attr, [])
    elif isinstance(node, ast.Name) and node.id in flow.module.constants:
        made = [flow.module.constants[node.id]]
    lines = sorted({each.lineno for each in made if hasattr(each, "lineno")})
    return f", which line {lines[0]} sets to `{shown(made[0])}`" if len(lines) == 1 else ""
