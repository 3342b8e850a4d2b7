"""Classes: what they inherit, in this file and in others, and what `self.x` was made from."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from flashmore.upgrade.source.replaced import replaced_on_self, stands_for
from flashmore.upgrade.source.scopes import Function, is_self

if TYPE_CHECKING:
    from flashmore.upgrade.source.module import Module


@dataclass(eq=False)
class Class:
    """A class, the classes that it inherits from (nearest first), and its attributes."""

    node: ast.ClassDef
    module: "Module"
    bases: list["Class | str"] = field(default_factory=list)
    """Those of another file by their full names."""

    @cached_property
    def own_methods(self) -> dict[str, Function]:
        """The methods that stand in its own body."""
        return {each.name: each for each in self.node.body if isinstance(each, Function)}

    @cached_property
    def line(self) -> list["Class"]:
        """The class itself and all of this file that it inherits from, each once, in the order of lookup."""
        found = {id(self): self}
        for base in self.bases:
            if isinstance(base, Class):
                found |= {id(each): each for each in base.line if id(each) not in found}
        return list(found.values())

    def lineage(self, seen: set[int] | None = None) -> "Iterator[Class]":
        """The same with the classes of other files, which are read when their turn comes and no sooner."""
        others = (base for each in self.line for base in each.bases if isinstance(base, str))
        if seen is None and all(base.startswith("torch.") for base in others):
            yield from self.line
            return
        seen = set() if seen is None else seen
        if id(self) in seen:
            return
        seen.add(id(self))
        yield self
        for each in self.bases:
            base = self.module.class_of(each) if isinstance(each, str) else each
            if base is not None:
                yield from base.lineage(seen)

    def method(self, name: str) -> Function | None:
        """A method, looked up in the class and its bases."""
        found = self.method_and_module(name)
        return found[1] if found is not None else None

    def method_and_module(self, name: str) -> "tuple[Module, Function] | None":
        """A method, and the module that its names are of."""
        found = ((each.module, each.own_methods[name]) for each in self.lineage() if name in each.own_methods)
        return next(found, None)

    def below(self, module: "Module") -> "set[Class]":
        """The classes of its own file and of another one that inherit from it."""
        return {*self.module.below(self), *module.below(self)}

    @cached_property
    def own_assignments(self) -> dict[str, list[ast.expr]]:
        """Every expression that is stored under `self.name`, by name."""
        found: dict[str, list[ast.expr]] = {}
        for name, value in _assignments(self.node):
            found.setdefault(name, []).append(value)
        return found

    def assignments(self, name: str) -> list[ast.expr]:
        """Every expression that is stored under `self.name` in this class, else in the nearest base."""
        holder = self.holder(name)
        return holder.own_assignments[name] if holder is not None else []

    def replaces(self, name: str, module: "Module") -> bool:
        """Whether an object of it, or of a class below it, may store something by name under `self.name`.

        Args:
            name: the attribute.
            module: a file whose classes count, besides those of its own.
        """
        return any(
            stands_for(each.replaced_on_self, name)
            for own in (self, *self.below(module))
            for each in own.lineage()
        )

    @cached_property
    def replaced_on_self(self) -> set[str | None]:
        """The attributes that its own body stores by name."""
        return replaced_on_self(self.node)

    def holder(self, name: str) -> "Class | None":
        """The class in its line that stores `self.name`."""
        return next((each for each in self.lineage() if name in each.own_assignments), None)


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            yield from (
                (each.id, statement.value) for each in statement.targets if isinstance(each, ast.Name)
            )
        elif (
            isinstance(statement, ast.AnnAssign)
            and statement.value
            and isinstance(statement.target, ast.Name)
        ):
            yield statement.target.id, statement.value
        elif isinstance(statement, Function):
            yield from _stored_on_self(statement)


def _stored_on_self(function: Function) -> Iterator[tuple[str, ast.expr]]:
    for each in ast.walk(function):
        if isinstance(each, ast.Assign):
            for target in each.targets:
                yield from _pairs(target, each.value)
        elif isinstance(each, (ast.AnnAssign, ast.NamedExpr)) and each.value is not None:
            yield from _pairs(each.target, each.value)
        elif isinstance(each, ast.AugAssign):
            yield from _pairs(each.target, ast.Constant(None))
        elif isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute):
            match (each.func.attr, each.args):
                case (
                    "register_buffer" | "register_parameter" | "add_module" | "__setattr__",
                    [ast.Constant(value=str(name)), value, *_],
                ):
                    yield name, value


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, (ast.Tuple, ast.List)):
        same = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
        for index, each in enumerate(target.elts):
            part = value.elts[index] if same else ast.Constant(None)  # type: ignore[attr-defined]
            yield from _pairs(each, part)
    elif isinstance(target, ast.Attribute) and is_self(target.value):
        yield target.attr, value
