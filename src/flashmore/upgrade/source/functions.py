"""The functions of one file, methods and nested ones included."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import Function, arguments_of


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
                own = None if nested and takes_self else owner  # a `self` that may be of any class
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
