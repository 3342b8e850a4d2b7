"""Where the import goes that a call needs."""

import ast

from flashmore.upgrade.site import Edit
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import is_note
from flashmore.upgrade.text import Text


def import_edits(lines: str | None, module: Module, text: Text) -> tuple[Edit, ...]:
    """The edit that adds import lines after those that the file has."""
    if lines is None:
        return ()
    body = module.tree.body
    last = None
    for index, statement in enumerate(body):
        between = (is_note(statement) and index == 0) or _is_magic(statement)
        if not between and not isinstance(statement, (ast.Import, ast.ImportFrom)):
            break
        last = statement
    at = text.whole_lines(last)[1] if last is not None else _first_line(body, text)
    blank = text.newline * 2 if last is None else ""
    return (Edit(at, at, lines + text.newline + blank),)


def _is_magic(statement: ast.stmt) -> bool:
    """Whether it is a magic or a shell line of a notebook, such as the one that installs what is imported."""
    return isinstance(statement, ast.Expr) and any(
        isinstance(node, ast.Name) and node.id == "get_ipython" for node in ast.walk(statement.value)
    )


def _first_line(body: list[ast.stmt], text: Text) -> int:
    """Where the first statement starts, with the comments above it."""
    first = body[0]
    decorators: list[ast.expr] = getattr(first, "decorator_list", [])
    return text.starts[min([first.lineno, *(each.lineno for each in decorators)]) - 1]
