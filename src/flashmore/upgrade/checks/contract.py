"""Weights that a function returns, and that none of its callers takes: they need not be computed."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from flashmore.upgrade.budget import walk
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import SEE_LOCALS, Function, own_nodes

_SPECIAL = {"forward", "backward", "setup_context"}
"""What PyTorch calls."""
Parents = dict[ast.AST, ast.AST]


@dataclass(frozen=True)
class Unused:
    """Elements of returned tuples that nobody reads.

    Args:
        elements: the expressions, which `None` can take the place of.
        lines: where the function is called.
    """

    elements: tuple[ast.expr, ...]
    lines: tuple[int, ...]

    def said(self, name: str) -> str:
        """What a rewrite takes for granted."""
        where = f"line{'s' * (len(self.lines) > 1)} {', '.join(map(str, self.lines))}"
        return (
            f"nobody but {where} of this file calls `{name}`: its weights are not used there, and become None"
        )


def unused_weights(flow: Flow, weights: set[Value]) -> Unused | None:
    """The weights that a function returns in a tuple, if no caller in its file uses them; None if one may.

    Args:
        flow: the function.
        weights: the values that are weights.
    """
    function, module = flow.function, flow.module
    if function.name in _SPECIAL or function.name.startswith("__"):
        return None
    decorators = [each for each in function.decorator_list if getattr(each, "id", "") != "staticmethod"]
    if decorators or function.returns is not None:  # an annotation would no longer be true
        return None
    places = {
        (index, element)
        for returned in _returned(function)
        for index, element in enumerate(returned)
        if flow.seen.get(element) in weights
    }
    if len({index for index, _ in places}) != 1 or any("\n" in ast.unparse(each) for _, each in places):
        return None
    index = next(iter(places))[0]
    parents, lines = _parents(module), []
    for node in walk(module.tree):
        if isinstance(node, ast.Constant) and node.value == function.name:
            return None  # `getattr(self, "attend")`
        if getattr(node, "id", getattr(node, "attr", None)) != function.name:
            continue
        assert isinstance(node, (ast.Name, ast.Attribute))
        call = parents.get(node)
        if not isinstance(call, ast.Call) or call.func is not node or not _leaves(call, index, parents):
            return None
        lines.append(node.lineno)
    elements = sorted((each for _, each in places), key=lambda each: each.lineno)
    return Unused(tuple(elements), tuple(sorted(lines))) if lines else None


def _returned(function: Function) -> Iterator[list[ast.expr]]:
    for node in own_nodes(function):
        match node:
            case ast.Return(value=ast.Tuple(elts=elements)):
                yield elements


@lru_cache(maxsize=1)  # of the file that is searched, not once for each of its places
def _parents(module: Module) -> Parents:
    return {child: node for node in ast.walk(module.tree) for child in ast.iter_child_nodes(node)}


def _leaves(call: ast.Call, index: int, parents: Parents) -> bool:
    """Whether a call's result is taken apart, and the element at an index left alone."""
    match parents.get(call):
        case ast.Expr():
            return True
        case ast.Subscript(slice=ast.Constant(value=int(at)), ctx=ast.Load()):
            return 0 <= at != index
        case ast.Assign(targets=[ast.Tuple(elts=targets)]) if not any(
            isinstance(each, ast.Starred) for each in targets
        ):
            target = targets[index] if index < len(targets) else None
            return isinstance(target, ast.Name) and not _is_read(target, parents)
    return False


def _is_read(target: ast.Name, parents: Parents) -> bool:
    """Whether anything in the function around a name reads it, or may see all names."""
    at: ast.AST = target
    while not isinstance(at, (*_FUNCTIONS, ast.ClassDef, ast.Module)):
        at = parents[at]
    if not isinstance(at, _FUNCTIONS):
        return True
    for node in walk(at):
        match node:
            case ast.Name(id=name, ctx=ast.Load() | ast.Del()) if name in {target.id, *SEE_LOCALS}:
                return True
            case ast.Global(names=names) | ast.Nonlocal(names=names) if target.id in names:
                return True
    return False


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def advice_about_weights(flow: Flow, how: str) -> str:
    """What to do about weights that leave: a method's callers may want them under a flag alone.

    Their flag cannot guard the method's lines, for subclasses and other files may call it, too.
    """
    owner, name = flow.owner, flow.function.name
    callers = [
        f"{method.name} in line {node.lineno}"
        for method in (owner.own_methods.values() if owner is not None and how == "returned" else ())
        for node in walk(method)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"self.{name}"
    ]
    if not callers:
        return "if they are not needed, do not return or store them"
    return (
        f"called by {', '.join(callers)}: add a flag to it, and return them only with that flag; this is "
        "not done automatically, because other code may call it too"
    )
