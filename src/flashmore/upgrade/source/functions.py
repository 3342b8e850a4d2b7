"""The functions of one file, methods and nested ones included, and its own lines as one of them."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from flashmore.upgrade.budget import walk
from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import MODULE, Function, Scope, arguments_of, claimed_by, is_static


@dataclass(frozen=True)
class FunctionOf:
    """A function, its full name, the class that it is a method of, and the functions that it is nested in."""

    node: Function
    name: str
    owner: Class | None
    enclosing: tuple[Function, ...] = ()


def functions(tree: ast.Module, module: Module) -> Iterator[FunctionOf]:
    """Every function of a file."""

    def inside(
        body: list[ast.stmt],
        owner: Class | None,
        prefix: str,
        enclosing: tuple[Function, ...] = (),
        nested: bool = False,
    ) -> Iterator[FunctionOf]:
        for statement in body:
            if isinstance(statement, Function):
                name = prefix + statement.name
                takes_self = any(each.arg == "self" for each in arguments_of(statement.args))
                any_class = takes_self and (nested or is_static(statement))
                own = None if any_class else owner
                yield FunctionOf(statement, name, own, enclosing)
                yield from inside(statement.body, own, f"{name}.", (*enclosing, statement), nested=True)
            elif isinstance(statement, ast.ClassDef):
                found = module.classes.get(statement.name)
                known = found if found is not None and found.node is statement else Class(statement, module)
                yield from inside(statement.body, known, f"{prefix}{statement.name}.", enclosing)
            elif isinstance(statement, (ast.If, ast.Try, ast.With)):
                both = [*statement.body, *getattr(statement, "orelse", [])]
                yield from inside(both, owner, prefix, enclosing, nested)

    yield from inside(tree.body, None, "")
    if whole(tree).body:
        yield FunctionOf(whole(tree), MODULE, None)


@lru_cache(maxsize=2)  # of the file that is searched, and of what it would be
def whole(tree: ast.Module) -> ast.FunctionDef:
    """A file's own lines, without its imports and definitions, as a function without arguments."""
    arguments = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    own = [each for each in tree.body if not isinstance(each, _NOT_OWN)]
    first, last = (own[0].lineno, own[-1].end_lineno) if own else (1, 1)
    return ast.FunctionDef(
        MODULE, arguments, own, [], lineno=first, col_offset=0, end_lineno=last, end_col_offset=0
    )


_NOT_OWN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def why_seen(module: Module, lines: Sequence[ast.stmt]) -> str | None:
    """Why other code may see some of a file's own lines change, or change what they read; else None."""
    inside = [node for each in lines for node in walk(each)]
    bound = {name for node in inside for name in claimed_by(node)}
    mentioned = {node.id for node in inside if isinstance(node, ast.Name)}
    first, last = lines[0].lineno, lines[-1].end_lineno or lines[-1].lineno
    for node in walk(module.tree):
        if isinstance(node, _NOT_OWN) and first <= node.lineno <= last:
            return f"line {node.lineno} imports or defines something between its lines"
        if isinstance(node, ast.Global) and mentioned & {*node.names}:
            return f"`{min(mentioned & {*node.names})}` is declared global in line {node.lineno}"
        if exported := bound & {*_named(node)}:
            return f"`{min(exported)}` may be read by other code: see line {getattr(node, 'lineno', 0)}"
        if isinstance(node, (*Scope, ast.ClassDef, ast.GeneratorExp)):
            read = bound & {each.id for each in walk(node) if isinstance(each, ast.Name)}
            if read:
                return f"`{min(read)}` may be read by other code: see line {node.lineno}"
    shared = [name for name in bound if module.elsewhere is not None and module.elsewhere.reads(name)]
    return f"`{min(shared)}` may be read by another file" if shared else None


def _named(node: ast.AST) -> list[str]:
    """The names in strings under which a node makes variables of the file known, or reads them."""
    match node:
        case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.AugAssign(target=ast.Name(id="__all__")):
            within: list[ast.AST] = [*walk(node.value)]
        case ast.Call(func=ast.Name(id="getattr")):
            within = [*node.args]
        case ast.Subscript(value=ast.Attribute(attr="__dict__" | "user_ns")):
            within = [node.slice]
        case _:
            return []
    return [each.value for each in within if isinstance(each, ast.Constant) and isinstance(each.value, str)]
