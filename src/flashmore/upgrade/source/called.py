"""The calls of a file whose functions are imported, whatever they are imported as, with where they stand."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from flashmore.upgrade.budget import step
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import MODULE, Function, claimed_by, dotted


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
    for node, symbol, within in placed(module.tree):
        full = module.qualified(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and full and not _is_hidden(module, node.func, within):
            yield Called(node, full, symbol, within)


def placed(
    node: ast.AST, symbol: str = MODULE, within: tuple[Function, ...] = ()
) -> Iterator[tuple[ast.AST, str, tuple[Function, ...]]]:
    """Every node of a file, in order, with its symbol and the functions that it stands in; see `Called`."""
    step()
    if isinstance(node, Function | ast.ClassDef):
        symbol = node.name if symbol == MODULE else f"{symbol}.{node.name}"
        within = (*within, node) if isinstance(node, Function) else within
    yield node, symbol, within
    for child in ast.iter_child_nodes(node):
        yield from placed(child, symbol, within)


def _is_hidden(module: Module, func: ast.expr, within: tuple[Function, ...]) -> bool:
    """Whether the first name of a function may have another meaning here than its import."""
    name = dotted(func).partition(".")[0]
    if not name or len(module.meanings.get(name, {""})) > 1:
        return True
    return any(
        name in claimed_by(node)
        for function in within
        for node in ast.walk(function)
        if not isinstance(node, ast.alias)
    )
