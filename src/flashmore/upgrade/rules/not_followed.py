"""Attention where no values are followed: in a lambda, or under a case of a `match` statement."""

import ast
from collections.abc import Iterator
from contextlib import suppress

from flashmore.upgrade.budget import DEFECTS, Exceeded, limited
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.plan import candidates, values_of
from flashmore.upgrade.rules.rule import Parsed
from flashmore.upgrade.site import Site
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.functions import functions
from flashmore.upgrade.source.scopes import MODULE, Function, last
from flashmore.upgrade.source.shapes import Shapes

_NOTHING = ast.arguments([], [], None, [], [], None, [])


def not_followed(parsed: Parsed, code: str) -> Iterator[Site]:
    """Every such attention, refused."""
    for node in ast.walk(parsed.module.tree):
        match node:
            case ast.Lambda(args=arguments, body=value):
                where, advice = "in a lambda", "make it a function"
                bodies: list[list[ast.stmt]] = [[ast.Return(value)]]
            case ast.Match(cases=cases):
                where, advice = "under a `case`", "move it into a function of its own"
                arguments, bodies = _NOTHING, [each.body for each in cases]
            case _:
                continue
        for body in bodies:
            for line, end in _attentions(parsed, ast.FunctionDef("", arguments, body, [])):
                symbol, reason = _around(parsed, line), f"it is written {where}, which is not followed"
                yield Site(parsed.path, line, end, symbol, "refused", reason, advice, code=code)


def _attentions(parsed: Parsed, function: Function) -> Iterator[tuple[int, int]]:
    """The lines of each attention in a function."""
    if not any("softmax" in last(each).lower() for each in ast.walk(function)):
        return
    with suppress(Exceeded, RecursionError, *DEFECTS), limited(parsed.budget):
        flow = Flow(parsed.module, None, function).run()
        shapes = Shapes(flow)
        for final, _, chain in candidates(flow, shapes):
            values = values_of(flow, shapes, final, chain) if isinstance(chain, Term) else set()
            lines = [getattr(each.node, "lineno", 0) for each in values if not each.inner]
            if lines:
                yield min(lines), getattr(final.node, "end_lineno", max(lines))


def _around(parsed: Parsed, line: int) -> str:
    """The name of the innermost function around a line."""
    found = MODULE
    for each in functions(parsed.module.tree, parsed.module):
        if each.name != MODULE and each.node.lineno <= line <= (each.node.end_lineno or 0):
            found = each.name
    return found
