"""Two versions of a program in one process: functions change their code, and the model stays the one it is.

Weights, buffers and optimizer are shared, so what differs between two steps is the code alone. That is what
lets steps before and after a rewrite alternate in short blocks.
"""

import ast
import gc
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType

Name = tuple[str, int]
"""A function's qualified name, and which of those with this name it is."""


class NotSwapped(Exception):
    """A function cannot take the other version's code; the message says why."""


class Versions:
    """The functions of rewritten files that live in this process, each with its code before and after.

    Args:
        rewritten: resolved paths, and the whole new source of each.

    Raises:
        NotSwapped: none of the files was imported, or a rewritten function closes over other variables.
    """

    def __init__(self, rewritten: Mapping[str, str]) -> None:
        self.codes: list[tuple[FunctionType, CodeType, CodeType]] = []
        spaces: dict[str, list[dict[str, object]]] = {}
        changed = {path: _changed(path, source) for path, source in rewritten.items()}
        resolved = cache(lambda name: str(Path(name).resolve()))  # a process has 100,000 functions
        for function in _functions():
            path = resolved(function.__code__.co_filename)
            after = changed.get(path, {}).get(
                (function.__code__.co_qualname, function.__code__.co_firstlineno)
            )
            if after is None:
                continue
            if after.co_freevars != function.__code__.co_freevars:
                raise NotSwapped(f"{after.co_qualname} closes over different variables than before")
            self.codes.append((function, function.__code__, after))
            if all(function.__globals__ is not space for space in spaces.setdefault(path, [])):
                spaces[path].append(function.__globals__)
        if not self.codes:
            raise NotSwapped("no rewritten function was imported as a plain function")
        for path, found in spaces.items():
            for space in found:
                _add_imports(path, rewritten[path], space)

    def before(self) -> None:
        """From now on the original code runs."""
        for function, code, _ in self.codes:
            function.__code__ = code

    def after(self) -> None:
        """From now on the rewritten code runs."""
        for function, _, code in self.codes:
            function.__code__ = code


def _functions() -> Iterator[FunctionType]:
    for found in gc.get_objects():
        if type(found) is FunctionType:
            yield found


def _changed(path: str, source: str) -> dict[tuple[str, int], CodeType]:
    """New code for every function that differs, by the old one's qualified name and first line."""
    old_source = Path(path).read_bytes()
    old = _numbered(compile(old_source, path, "exec", dont_inherit=True))
    new = _numbered(compile(source, path, "exec", dont_inherit=True))
    return {
        (code.co_qualname, code.co_firstlineno): new[name]
        for name, code in old.items()
        if name in new and _differs(code, new[name])
    }


def _numbered(module: CodeType) -> dict[Name, CodeType]:
    found: dict[Name, CodeType] = {}
    ahead = [module]
    while ahead:
        inner = [constant for constant in ahead.pop(0).co_consts if isinstance(constant, CodeType)]
        for code in inner:
            times = sum(name == code.co_qualname for name, _ in found)
            found[code.co_qualname, times] = code
        ahead += inner
    return found


def _differs(one: CodeType, other: CodeType) -> bool:
    """Whether two codes do different things; where their lines stand does not count."""

    def what(code: CodeType) -> tuple[object, ...]:
        constants = tuple(what(c) if isinstance(c, CodeType) else (type(c), repr(c)) for c in code.co_consts)
        return code.co_code, code.co_names, code.co_varnames, constants

    return what(one) != what(other)


def _add_imports(path: str, source: str, space: dict[str, object]) -> None:
    """Run the imports that the rewrite adds to a module, in its own names."""
    there = {ast.dump(node) for node in ast.parse(Path(path).read_bytes()).body}
    added: list[ast.stmt] = [
        node
        for node in ast.parse(source).body
        if isinstance(node, (ast.Import, ast.ImportFrom)) and ast.dump(node) not in there
    ]
    exec(compile(ast.Module(added, []), path, "exec"), space)  # imports of torch's own, written by us
