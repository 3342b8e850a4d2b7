"""Attentions that can be rewritten after other lines of their function are changed.

A helper's lines take the place of its call, several assignments that of one, and None that of weights which
nobody asks for.
"""

import ast
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import Budget
from flashmore.upgrade.checks.contract import unused_weights
from flashmore.upgrade.edits import composed, edited
from flashmore.upgrade.emit.inlined import helpers, inlined, separated
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.plan import values_of
from flashmore.upgrade.rules.rule import Parsed
from flashmore.upgrade.site import Edit, Site
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.functions import FunctionOf, functions
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.nodes import Blocks
from flashmore.upgrade.source.scopes import MODULE
from flashmore.upgrade.source.shapes import Shapes
from flashmore.upgrade.text import Text

_MOST_CHANGES = 3


class Changed(ABC):
    """One function, searched again after its lines are changed.

    Args:
        parsed: its file.
        flow: what it computes.
        name: its full name.
        depth: how many changes were made before.
    """

    def __init__(self, parsed: Parsed, flow: Flow, name: str, depth: int) -> None:
        self.parsed = parsed
        self.text = parsed.text
        self.path = parsed.path
        self.flow = flow
        self.name = name
        self.depth = depth
        self.shapes = Shapes(flow)
        self.blocks = Blocks(flow.function)

    @abstractmethod
    def again(self, parsed: Parsed, found: FunctionOf, depth: int) -> list[Site]:
        """The attentions of a changed function."""

    def without_weights(self, chain: Term) -> Site | None:
        """The attention of a function as if it returned None for weights that nobody asks for."""
        module, owner = self.flow.module, self.flow.owner
        unused = unused_weights(self.flow, {term.value for term in chain.walk()})
        if unused is None:
            return None
        name = "` and `".join(dict.fromkeys(each.text for each in unused.names))
        asked = {(each.text, each.of.node.name if each.of is not None else "") for each in unused.names}
        user, path = unused.module or module, unused.module.path if unused.module is not None else None
        exported = user.elsewhere is not None and any(user.elsewhere.exports(user, *each) for each in asked)
        if module.elsewhere is not None and owner is not None and any(each.made for each in unused.names):
            exported |= module.elsewhere.exports(module, owner.node.name, "", path)
        if exported:
            return None
        made = self._after([*unused.edits(self.text)], self.depth)
        if made is None:
            return None
        return replace(made, assumptions=(*made.assumptions, unused.said(name)))

    def with_other_lines(self, final: Value, chain: Term) -> Site | None:
        """An attention of which a part is in a helper, or in an assignment of several values."""
        if self.depth == _MOST_CHANGES or self.name == MODULE:
            return None
        values = values_of(self.flow, self.shapes, final, chain)
        for edit, statement, helper in self._other_lines(values):
            if (made := self._after([edit], self.depth + 1)) is None:
                continue
            first, end = statement.lineno, statement.end_lineno or statement.lineno
            grown = len(Text(edit.text).lines) - (end + 1 - first)
            made = replace(made, line=min(made.line, first), end_line=max(made.end_line - grown, end))
            if helper is None:
                return made
            self.parsed.moved.add(helper)
            note = f"the lines of `{helper}` now stand in the place of its call; others may call it"
            return replace(made, notes=(*made.notes, note))
        return None

    def _other_lines(self, values: set[Value]) -> Iterator[tuple[Edit, ast.stmt, str | None]]:
        """Changes of one statement that keep its meaning, with the helper that is no longer called."""
        module = self.flow.module
        for value, closure in helpers(self.flow, values):
            assert value.statement is not None
            with suppress(Refuse):
                edit = inlined(self.flow, self.text, self.blocks, value, closure)
                own = (e.name for e in functions(module.tree, module) if e.node is closure.node)
                name = next(own, None)  # of another file, none
                yield edit, value.statement, name
        statements = {value.statement for value in values if isinstance(value.statement, ast.Assign)}
        for statement in sorted(statements, key=lambda each: each.lineno if each else 0):
            assert statement is not None
            with suppress(Refuse):
                yield separated(self.flow, self.text, self.blocks, statement), statement, None

    def _after(self, first: list[Edit], depth: int) -> Site | None:
        """The one attention that can be rewritten in what some edits change, with these edits."""
        module, source = self.flow.module, edited(self.text.source, first)
        try:
            changed = Module(ast.parse(source), module.elsewhere, module.path)
        except SyntaxError:  # the last argument stands in parentheses of its own
            return None
        place = [each.node for each in functions(module.tree, module)].index(self.flow.function)
        same = [*functions(changed.tree, changed)][place]
        parsed = Parsed(Text(source), changed, self.path, Budget(0))  # as part of this one
        made = [each for each in self.again(parsed, same, depth) if each.verdict == "rewritten"]
        if len(made) > 1:  # of which others may stand elsewhere in the function
            end = max(each.end for each in first) + len(source) - len(self.text.source)
            last = parsed.text.offset_line(max(end - 1, 0)) + 1
            line = parsed.text.offset_line(min(each.start for each in first)) + 1
            made = [each for each in made if each.line <= last and line <= each.end_line]
        self.parsed.moved.update(parsed.moved)
        if len(made) != 1:
            return None
        return replace(made[0], edits=composed(self.text.source, first, made[0].edits))
