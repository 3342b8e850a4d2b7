"""Where a file reads how a gradient is laid out in memory, which is another one from a fused kernel."""

import ast
import re
from collections.abc import Iterator
from contextlib import suppress

from flashmore.upgrade.budget import DEFECTS, Budget, Exceeded, limited
from flashmore.upgrade.checks.callees import applied, is_function
from flashmore.upgrade.checks.gradients import read_by, told_by
from flashmore.upgrade.checks.output import ASKS_GRADIENTS
from flashmore.upgrade.project.twice import Use
from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.functions import FunctionOf, functions
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.operations import READS_LAYOUT
from flashmore.upgrade.source.replaced import HOOK
from flashmore.upgrade.source.scopes import MODULE, Function, last

_ASKS = rb"autograd\.grad\b|import[ (][^\n]*\bgrad\b|register_\w*hook|retain_grad|\bFunction\b"
_STEPS = 50_000
HINT = re.compile(rb"(?s)\A(?=.*(?:%s))(?=.*\.(?:%s)\b)" % (_ASKS, "|".join(sorted(READS_LAYOUT)).encode()))
"""A file without such words reads none, or only of a gradient that another file has asked for."""


def layouts(module: Module) -> Iterator[Use]:
    """Every such place."""
    for each in module.classes.values():
        backward = each.own_methods.get("backward")
        if backward is not None and is_function(each):
            line = _told_by(backward, module, each)
            if line is not None:
                yield Use(line, f"{each.node.name}.backward", each.node.name, layout=True)
    every = [*functions(module.tree, module)]
    named = {each.node.name: each for each in every}
    for found in every:
        words = {last(node) for node in ast.walk(found.node)}
        if not words.isdisjoint({"grad", *ASKS_GRADIENTS}):
            with suppress(Exceeded, RecursionError, *DEFECTS), limited(Budget(_STEPS), _STEPS):
                yield from _of(Flow(module, found.owner, found.node, found.enclosing).run(), found)
        for node in ast.walk(found.node):
            match node:
                case ast.Call(func=ast.Attribute(attr=name), args=[hook, *_]) if "backward" in name:
                    told = _told(hook, named, module) if HOOK.fullmatch(name) else None
                    if told is not None:
                        yield Use(told, f"a hook of line {node.lineno}", _top(found), layout=True)


def _told_by(function: Function | ast.Lambda, module: Module, owner: Class | None) -> int | None:
    with suppress(Exceeded, RecursionError, *DEFECTS), limited(Budget(_STEPS), _STEPS):
        return told_by(function, 1, module, owner)
    return None


def _told(hook: ast.expr, named: dict[str, FunctionOf], module: Module) -> int | None:
    """The line in which a hook of a layer's backward reads a layout."""
    if isinstance(hook, ast.Lambda):
        return _told_by(hook, module, None)
    found = named.get(last(hook))
    return _told_by(found.node, module, found.owner) if found is not None else None


def _of(flow: Flow, found: FunctionOf) -> Iterator[Use]:
    for value in flow.values:
        read = read_by(flow, value) if applied(value, flow.module) is None else None
        if read is not None:
            yield Use(read.line, f"`{value.name()}`", _top(found), layout=True, node=read.node)


def _top(found: FunctionOf) -> str | None:
    return None if found.name == MODULE else found.name.partition(".")[0]
