"""The names that syntax reads and binds, by Python's own scopes."""

import ast
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

SEE_LOCALS = frozenset(("locals", "vars", "eval", "exec", "globals", "dir"))
"""Functions of Python's that may read or set names which are not written."""
MODULE = "<module>"
"""The symbol of what stands outside of all functions and classes, as in Python's tracebacks."""
Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
TYPE_PARAMETERS = ("TypeVar", "ParamSpec", "TypeVarTuple")  # of `ast` from Python 3.12 on


def dotted(node: ast.AST | None) -> str:
    """`a.b.c`; empty where something else than a name stands at its head."""
    tail = ""
    while type(node) is ast.Attribute:
        tail = f".{node.attr}{tail}"
        node = node.value
    return node.id + tail if type(node) is ast.Name else ""


def head(node: ast.AST) -> str:
    """The name at the head of attributes, elements and a star: of `*a.b[0]` that is `a`; else empty."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def last(node: ast.AST) -> str:
    """The last name of what is called: of `a.b.c` that is `c`; else empty."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def is_self(node: ast.AST) -> bool:
    """Whether it is the name `self`."""
    return isinstance(node, ast.Name) and node.id == "self"


def is_note(statement: ast.AST) -> bool:
    """Whether it is a docstring, or another text or number that nobody reads."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def copied(node: Any, stands_for: Callable[[ast.AST], ast.AST | None]) -> Any:
    """A copy of a node, in which something may stand for a part of it.

    Args:
        node: the node.
        stands_for: what to take instead of a part and all beneath it; None for a copy.
    """
    if (made := stands_for(node)) is not None:
        return made
    fields: dict[str, object] = {}
    for name, each in ast.iter_fields(node):
        if isinstance(each, list):
            fields[name] = [copied(e, stands_for) if isinstance(e, ast.AST) else e for e in each]
        else:
            fields[name] = copied(each, stands_for) if isinstance(each, ast.AST) else each
    return type(node)(**fields)


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


def stored_by_text(node: ast.AST, this: Container[str]) -> list[str | None]:
    """The names of the module's own scope that a node binds or deletes through the module; None for any.

    Args:
        node: the node.
        this: the names that the file has for its own module.
    """
    match node:
        case ast.Subscript(value=names, slice=key, ctx=ast.Store() | ast.Del()) if _is_scope(names, this):
            return [_text(key)]
        case ast.Attribute(value=owner, attr=name, ctx=ast.Store() | ast.Del()) if is_module(owner, this):
            return [name]
        case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[owner, key, *_]) if is_module(
            owner, this
        ):
            return [_text(key)]
        case ast.Call(func=ast.Attribute(value=names, attr="update" | "__setitem__" | "setdefault" | "pop")):
            if _is_scope(names, this):
                keys = [_text(each) for each in node.args[:1]]
                return [*keys, *(each.arg for each in node.keywords)]
    return []


def is_module(node: ast.AST, this: Container[str]) -> bool:
    """Whether an expression is the module that it stands in, such as `sys.modules[__name__]`."""
    match node:
        case ast.Subscript(value=ast.Attribute(attr="modules") | ast.Name(id="modules"), slice=key):
            return getattr(key, "id", "") == "__name__"
        case ast.Call(func=func, args=[ast.Name(id="__name__")]):
            return last(func) in ("import_module", "__import__")
    return isinstance(node, ast.Name) and node.id in this


def module_named(node: ast.AST | None) -> str | None:
    """The module that an expression finds by a text: `sys.modules["torch"]`, `import_module("torch")`."""
    match node:
        case (
            ast.Subscript(value=ast.Attribute(attr="modules"), slice=ast.Constant(value=str(name)))
            | ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name))])
            | ast.Call(func=ast.Name(id="import_module"), args=[ast.Constant(value=str(name))])
        ):
            return name
    return None


def _is_scope(node: ast.AST, this: Container[str]) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="globals")) | ast.Call(func=ast.Name(id="vars"), args=[]):
            return True
        case ast.Attribute(attr="__dict__", value=owner) | ast.Call(func=ast.Name(id="vars"), args=[owner]):
            return is_module(owner, this)
    return False


def _text(key: ast.expr) -> str | None:
    return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else None


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


def is_static(method: Function) -> bool:
    """Whether a method takes no `self`."""
    return any(getattr(each, "id", "") == "staticmethod" for each in method.decorator_list)


def given_to(call: ast.Call) -> list[ast.expr]:
    """The arguments of a call, in order."""
    return [*call.args, *(each.value for each in call.keywords)]


def bound_arguments(function: Function, call: ast.Call, *, method: bool) -> dict[str, ast.expr]:
    """The expressions that a call passes, or that are the defaults, by argument; none where it spreads some.

    Args:
        function: what is called.
        call: the call.
        method: whether the call leaves out the first argument, `self`.
    """
    positional = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
    if any(isinstance(each, ast.Starred) for each in call.args) or any(e.arg is None for e in call.keywords):
        return {}
    given = dict(zip(positional[method:], call.args, strict=False))
    return defaults_of(function.args) | given | {each.arg: each.value for each in call.keywords if each.arg}


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
