"""The calls of a file whose functions are imported, whatever they are imported as, with where they stand."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from flashmore.upgrade.budget import step
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import MODULE, Function, claimed_by


@dataclass(frozen=True)
class Called:
    """One call.

    Args:
        node: the call.
        full: the full name of what is called, such as `torch.optim.AdamW`.
        symbol: the function or the class that it stands in.
        within: the functions that it stands in, the innermost last.
    """

    node: ast.Call
    full: str
    symbol: str
    within: tuple[Function, ...] = ()


def calls(module: Module) -> Iterator[Called]:
    """Every call of an imported function, in order."""
    yield from _inside(module, module.tree, MODULE, ())


def _inside(module: Module, node: ast.AST, symbol: str, within: tuple[Function, ...]) -> Iterator[Called]:
    step()
    if isinstance(node, Function | ast.ClassDef):
        symbol = node.name if symbol == MODULE else f"{symbol}.{node.name}"
        within = (*within, node) if isinstance(node, Function) else within
    elif isinstance(node, ast.Call):
        full = module.qualified(node.func)
        if full and not _is_hidden(module, node.func, within):
            yield Called(node, full, symbol, within)
    for child in ast.iter_child_nodes(node):
        yield from _inside(module, child, symbol, within)


def _is_hidden(module: Module, func: ast.expr, within: tuple[Function, ...]) -> bool:
    """Whether the first name of a function may have another meaning here than its import."""
    name = func
    while isinstance(name, ast.Attribute):
        name = name.value
    if not isinstance(name, ast.Name) or len(module.meanings.get(name.id, {""})) > 1:
        return True
    return any(
        name.id in claimed_by(node)
        for function in within
        for node in ast.walk(function)
        if not isinstance(node, ast.alias)
    )
