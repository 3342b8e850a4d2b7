"""The names of one file: imports, functions, classes."""

import ast
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from flashmore.upgrade.budget import step, walk
from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.replaced import patched_by_text, replaced, stands_for, stored
from flashmore.upgrade.source.scopes import (
    MODULE,
    TYPE_PARAMETERS,
    Function,
    claimed_by,
    dotted,
    is_module,
    is_private,
    last,
    module_named,
    stored_by_text,
)

if TYPE_CHECKING:
    from flashmore.upgrade.project.definitions import Definitions

FUNCTIONAL = "torch.nn.functional"
_STARRED = {
    "dropout", "gelu", "layer_norm", "linear", "log_softmax", "normalize", "pad", "relu",
    "scaled_dot_product_attention", "softmax",
}  # fmt: skip
"""What `from torch.nn.functional import *` brings, among others."""
_LONGEST_NAME = 1000
"""What is longer names nothing in torch, and a long row of aliases would make it longer still."""


@dataclass(frozen=True)
class Found:
    """A definition of another file: its module, and its name there."""

    module: "Module"
    name: str


class Module:
    """The names that a file's functions see.

    Args:
        tree: the file.
        elsewhere: the definitions of other files; None if no other file is read.
        path: the file's path, which relative imports count from.
    """

    def __init__(
        self, tree: ast.Module, elsewhere: "Definitions | None" = None, path: Path | None = None
    ) -> None:
        self.tree = tree
        self.elsewhere = elsewhere
        self.path = path
        self._found: dict[str, Found | str | None] = {}
        self.imports: dict[str, str] = {}
        self.functions: dict[str, Function] = {}
        self.classes: dict[str, Class] = {}
        self.constants: dict[str, ast.expr] = {}
        self.aliases: dict[str, str] = {}
        self.meanings: dict[str, set[str]] = {}
        """Of each name of the module's own scope, what it may be: the full name of an import, else ""."""
        self._stored: set[str] = set()
        for statement in _top_level(tree.body):
            self._see(statement)
        twice = self._see_all()
        for name in {*self.functions, *self.classes, *self._stored}:
            self.imports.pop(name, None)  # which a definition of its own replaces, here or where it fails
        for name in twice:
            self.functions.pop(name, None)
            self.classes.pop(name, None)
            self.constants.pop(name, None)
        for found in self.classes.values():
            self._resolve_bases(found)

    def _see_all(self) -> set[str]:
        """See every import; gives the names that the module binds twice, or a function declares `global`.

        One walk, level by level as `ast.walk`, for the walk is most of what a large file takes.
        """
        counts: dict[str, int] = {}
        shared: set[str] = set()
        stars: set[str] = set()
        absent = self._absent
        ahead: deque[tuple[ast.AST, bool]] = deque([(self.tree, True)])
        while ahead:
            node, of_module = ahead.popleft()
            step()
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self.imports.update(_imported(node))
                stars.update(full for name, full in _imported(node) if name == "*")
            elif isinstance(node, ast.Global):
                shared.update(node.names)
            elif isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
                self._store(node, shared)
            everywhere = isinstance(node, ast.Global) or type(node).__name__ in TYPE_PARAMETERS
            seen = (of_module or everywhere) and id(node) not in absent
            for name, meaning in _meanings(node) if seen else ():
                self.meanings.setdefault(name, set()).add(meaning)
                counts[name] = counts.get(name, 0) + 1
            inside = _inside(node)
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                ahead.extend(
                    (child, of_module and id(child) not in inside) for child in ast.iter_child_nodes(node)
                )
        for name in _STARRED - {*self.meanings} if stars == {f"{FUNCTIONAL}.*"} else ():
            self.imports[name] = f"{FUNCTIONAL}.{name}"
            self.meanings[name] = {self.imports[name]}
        return {name for name, count in counts.items() if count > 1} | shared

    def _store(self, node: ast.AST, shared: set[str]) -> None:
        """See what is stored in the module by a text, such as `globals()["x"] = 3`."""
        for name in stored_by_text(node, self._itself):
            if name is None:  # any option
                shared |= {each for each, made in self.constants.items() if isinstance(made, ast.Constant)}
            else:
                shared.add(name)
                self._stored.add(name)
                self.meanings.setdefault(name, set()).add("")

    @cached_property
    def _itself(self) -> set[str]:
        """The names that the file has for its own module."""
        return {name for name, made in self.constants.items() if is_module(made, ())}

    def below(self, found: Class) -> Iterator[Class]:
        """The classes of this file that inherit from one, directly or through others."""
        yield from self._below.get(found, ())

    @cached_property
    def _below(self) -> dict[Class, list[Class]]:
        below: dict[Class, list[Class]] = {}
        for each in self.classes.values():
            step(len(each.line))
            for base in each.line:
                if base is not each:
                    below.setdefault(base, []).append(each)
        return below

    def is_replaced(self, name: str) -> bool:
        """Whether an attribute of some object may be another than its class says."""
        return stands_for(self.replaced, name)

    @cached_property
    def replaced(self) -> set[str | None]:
        """Attributes that may be stored on objects of any class; see `replaced`."""
        return replaced(self.tree, self.qualified)

    def _see(self, statement: ast.stmt) -> None:
        if isinstance(statement, Function):
            self.functions[statement.name] = statement
        elif isinstance(statement, ast.ClassDef):
            self.classes[statement.name] = Class(statement, self)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    self.constants[target.id] = statement.value

    def _resolve_bases(self, found: Class) -> None:
        for base in found.node.bases:
            name = base.id if isinstance(base, ast.Name) else ""
            if name in self.classes and self.classes[name].node.lineno < found.node.lineno:
                found.bases.append(self.classes[name])
            elif full := self.qualified(base):
                found.bases.append(full)

    def holds(self, name: str) -> bool:
        """Whether the module defines a name once: a function, a class or a constant."""
        return name in self.functions or name in self.classes or name in self.constants

    def definition(self, full: str) -> Found | str | None:
        """What a name of another file is, where one import alone can bring it: see `Definitions.find`."""
        if self.elsewhere is None:
            return None
        if full not in self._found:
            by = [name for name, whole in self.imports.items() if f"{full}.".startswith(f"{whole}.")]
            if any(self.meanings.get(name) == {self.imports[name]} for name in by):
                self._found[full] = self.elsewhere.find(self.path, full)
            elif not by and full.isidentifier() and full not in self.meanings:
                self._found[full] = self.elsewhere.starred(self, full)
            else:
                self._found[full] = None
        return self._found[full]

    def class_of(self, full: str) -> Class | None:
        """A class of another file."""
        found = self.definition(full)
        return found.module.classes.get(found.name) if isinstance(found, Found) else None

    def of_library(self, full: str) -> str:
        """The name in a library of what another file passes on under a name."""
        found = self.definition(full) if full and not full.startswith("torch.") else full
        return found if isinstance(found, str) else full

    def qualified(self, node: ast.expr) -> str:
        """The full name of `F.softmax`, `nn.Linear`, ...: empty where it is not an imported name.

        What the file itself replaces in a library, as `torch.erf = ...` does, has no full name.
        """
        full = self._full(node)
        return "" if full in self.patched else full

    def _full(self, node: ast.expr) -> str:
        if (module := module_named(node)) is not None:
            return module
        root, *attributes = dotted(node).split(".")
        full = self._followed(root)
        return ".".join((full, *attributes)) if full else ""

    @cached_property
    def patched(self) -> dict[str, int]:
        """The full names of libraries' functions and classes that the file replaces, with the lines."""
        return {full: line for full, line in self.exchanged.items() if full.partition(".")[0] == "torch"}

    @cached_property
    def exchanged(self) -> dict[str, int]:
        """The full names of what the file replaces in imported modules, with the lines."""
        found = {f"{self._full(owner)}.{name}": line for owner, name, line in stored(self.tree)}
        return {full: line for full, line in found.items() if full[0] != "."} | patched_by_text(self.tree)

    def _followed(self, name: str) -> str:
        """The full name of an import, found through the module's aliases, each of which is followed once."""
        ways: list[tuple[str, list[str]]] = []
        while name and name not in self.aliases:
            self.aliases[name] = ""  # an alias of itself has none
            made = self.constants.get(name)
            if (full := self.imports.get(name, module_named(made))) is not None:
                self.aliases[name] = full
                break
            alias, *attributes = dotted(made).split(".")
            ways.append((name, attributes))
            name = alias
        found = self.aliases.get(name, "")
        for alias, attributes in reversed(ways):
            found = ".".join((found, *attributes)) if found and len(found) < _LONGEST_NAME else ""
            self.aliases[alias] = found
        return found

    @cached_property
    def attributes(self) -> set[str]:
        """Every attribute that the file mentions."""
        return {each.attr for each in ast.walk(self.tree) if isinstance(each, ast.Attribute)}

    @cached_property
    def _absent(self) -> set[int]:
        """The ids of the names in `except ImportError: torch = None`, where the `try` imports them."""
        return {
            id(target)
            for tried in self.tree.body
            if isinstance(tried, ast.Try)
            for handler in tried.handlers
            if last(handler.type or handler) in ("ImportError", "ModuleNotFoundError")
            for each in handler.body
            if isinstance(each, ast.Assign)
            and isinstance(each.value, ast.Constant)
            and each.value.value is None
            for target in each.targets
            if isinstance(target, ast.Name)
            and any(
                target.id in dict(_imported(one))
                for one in tried.body
                if isinstance(one, (ast.Import, ast.ImportFrom))
            )
        }

    @cached_property
    def names(self) -> dict[str, int]:
        """Every name that the file mentions, with the line that decides its meaning or mentions it."""
        decided: dict[str, int] = {}
        mentioned: dict[str, int] = {}
        for node in ast.walk(self.tree):
            line = getattr(node, "lineno", 0)
            for name in claimed_by(node) if id(node) not in self._absent else ():
                (mentioned if isinstance(node, ast.alias) else decided).setdefault(name, line)
            if isinstance(node, ast.Name):
                mentioned.setdefault(node.id, line)
        return mentioned | decided

    def spelling(self, full: str, function: Function) -> str | None:
        """How a function may write a full name: with imports above it whose names nothing else binds."""
        above = {
            (name, meaning)
            for top in self.tree.body
            for statement in (top.body if isinstance(top, ast.Try) else [top])
            if isinstance(statement, (ast.Import, ast.ImportFrom)) and statement.lineno < function.lineno
            for name, meaning in _imported(statement)
        }
        for name, meaning in sorted(above, key=lambda each: (-len(each[1]), each[0])):
            if not f"{full}.".startswith(f"{meaning}."):
                continue
            if self.meanings[name] == {meaning} and not self._is_own(name, function):
                return name + full[len(meaning) :]
        return None

    def is_builtin(self, name: str, function: Function) -> bool:
        """Whether a function finds a builtin under its name."""
        return name not in self.meanings and not self._is_own(name, function)

    def may_swallow(self, items: list[ast.withitem], function: Function) -> bool:
        """Whether a `with` statement of a function may go on after an exception in its body.

        Torch's own contexts pass every exception on; of others that is not known.
        """
        for item in items:
            made = item.context_expr
            made = made.func if isinstance(made, ast.Call) else made
            full = self.qualified(made)
            root = next(each.id for each in ast.walk(made) if isinstance(each, ast.Name)) if full else ""
            known = full == "contextlib.nullcontext" or full.startswith("torch.")
            if not known or self._is_own(root, function):
                return True
        return False

    def _is_own(self, name: str, function: Function) -> bool:
        """Whether a function, or a class around it, may give a name another meaning than the module."""
        if function.name == MODULE:
            return len(self.meanings.get(name, ())) > 1
        return is_private(name) or any(name in claimed_by(node) for node in walk(function))


def _imported(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """The names that an import binds, with their full names."""
    for each in statement.names:
        if isinstance(statement, ast.ImportFrom):
            module = "." * statement.level + (f"{statement.module}." if statement.module else "")
            yield each.asname or each.name, module + each.name
        elif each.asname:
            yield each.asname, each.name
        else:
            yield (each.name.split(".")[0],) * 2


def _meanings(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The names that a node binds, deletes or declares, with what they are then."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from _imported(node)
    elif not isinstance(node, ast.arg):
        yield from ((name, "") for name in claimed_by(node))


def _inside(node: ast.AST) -> set[int]:
    """The ids of a function's or a class's statements: its defaults and decorators stand outside."""
    if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
        return set()
    return {id(each) for each in (node.body if isinstance(node.body, list) else [node.body])}


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try)):
            yield from _top_level([*statement.body, *statement.orelse])
