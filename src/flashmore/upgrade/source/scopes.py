"""The names that syntax binds, by Python's own scopes."""

import ast
from collections.abc import Iterable, Iterator

SEE_LOCALS = frozenset(("locals", "vars", "eval", "exec", "globals", "dir"))
"""Functions of Python's that may read or set names which are not written."""
MODULE = "<module>"
"""The symbol of what stands outside of all functions and classes, as in Python's tracebacks."""
Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
TYPE_PARAMETERS = ("TypeVar", "ParamSpec", "TypeVarTuple")  # of `ast` from Python 3.12 on


def bound_by(node: ast.AST) -> list[str]:
    """The names that a node itself binds."""
    match node:
        case ast.Name(ctx=ast.Store(), id=name):
            return [name]
        case ast.alias(name=name, asname=asname):
            return [asname or name.split(".")[0]]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case (
            ast.MatchAs(name=str(name))
            | ast.MatchStar(name=str(name))
            | ast.MatchMapping(rest=str(name))
            | ast.ExceptHandler(name=str(name))
        ):
            return [name]
    return []


def claimed_by(node: ast.AST) -> list[str]:
    """The names whose meaning a node decides in some scope: those that it binds, deletes or declares."""
    match node:
        case ast.Name(ctx=ast.Del(), id=name) | ast.arg(arg=name):
            return [name]
        case ast.Global(names=names) | ast.Nonlocal(names=names):
            return names
    return [node.name] if type(node).__name__ in TYPE_PARAMETERS else bound_by(node)  # type: ignore[attr-defined]


def own_nodes(node: ast.AST) -> Iterable[ast.AST]:
    """A node and all beneath it but the insides of nested functions, classes and lambdas."""
    ahead = [node]
    while ahead:
        each = ahead.pop()
        yield each
        if each is node or not isinstance(each, (*Scope, ast.ClassDef)):
            ahead.extend(ast.iter_child_nodes(each))


def arguments_of(node: ast.arguments) -> list[ast.arg]:
    """The arguments of one function, not of the lambdas that are their defaults."""
    rest = [each for each in (node.vararg, node.kwarg) if each is not None]
    return [*node.posonlyargs, *node.args, *node.kwonlyargs, *rest]


def defaults_of(node: ast.arguments) -> dict[str, ast.expr]:
    """The defaults of a function's arguments, by name."""
    positional = [each.arg for each in (*node.posonlyargs, *node.args)]
    found = dict(zip(reversed(positional), reversed(node.defaults), strict=False))
    return found | {a.arg: d for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True) if d is not None}


def is_private(name: str) -> bool:
    """Whether a class body writes `_Class__name` for a name."""
    return name.startswith("__") and not name.endswith("__")


def heads(statement: ast.stmt) -> Iterator[ast.AST]:
    """A statement and what is in it, but not the statements of its blocks."""
    ahead: list[ast.AST] = [statement]
    while ahead:
        node = ahead.pop()
        yield node
        ahead += [
            each
            for each in ast.iter_child_nodes(node)
            if not isinstance(each, (ast.stmt, ast.match_case, ast.ExceptHandler))
        ]
