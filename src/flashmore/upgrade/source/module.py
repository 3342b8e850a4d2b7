"""The names of one file: imports, functions, classes, and what `self.x` was made from."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

FUNCTIONAL = "torch.nn.functional"
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Class:
    """A class, the classes of this file that it inherits from (nearest first), and its attributes."""

    node: ast.ClassDef
    bases: list["Class"] = field(default_factory=list)
    foreign_bases: bool = False

    @cached_property
    def own_methods(self) -> dict[str, Function]:
        """The methods that stand in its own body."""
        return {each.name: each for each in self.node.body if isinstance(each, Function)}

    def method(self, name: str) -> Function | None:
        """A method, looked up in the class and its bases."""
        if name in self.own_methods:
            return self.own_methods[name]
        return next((found for base in self.bases if (found := base.method(name))), None)

    @cached_property
    def own_assignments(self) -> dict[str, list[ast.expr]]:
        """Every expression that is stored under `self.name`, by name."""
        found: dict[str, list[ast.expr]] = {}
        for name, value in _assignments(self.node):
            found.setdefault(name, []).append(value)
        return found

    def assignments(self, name: str) -> list[ast.expr]:
        """Every expression that is stored under `self.name` in this class, else in the nearest base."""
        if name in self.own_assignments:
            return self.own_assignments[name]
        return next((found for base in self.bases if (found := base.assignments(name))), [])


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
    elif (
        isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    ):
        yield target.attr, value


class Module:
    """The names that a file's functions see."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.imports: dict[str, str] = {}
        self.functions: dict[str, Function] = {}
        self.classes: dict[str, Class] = {}
        self.constants: dict[str, ast.expr] = {}
        for statement in _top_level(tree.body):
            self._see(statement)
        for each in ast.walk(tree):
            if isinstance(each, (ast.Import, ast.ImportFrom)):
                self._see_import(each)
        for found in self.classes.values():
            self._resolve_bases(found)

    def _see(self, statement: ast.stmt) -> None:
        if isinstance(statement, Function):
            self.functions[statement.name] = statement
        elif isinstance(statement, ast.ClassDef):
            self.classes[statement.name] = Class(statement)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    self.constants[target.id] = statement.value

    def _see_import(self, statement: ast.Import | ast.ImportFrom) -> None:
        if isinstance(statement, ast.Import):
            for each in statement.names:
                if each.asname:
                    self.imports[each.asname] = each.name
                else:
                    self.imports[each.name.split(".")[0]] = each.name.split(".")[0]
        else:
            prefix = "." * statement.level + (statement.module or "")
            for each in statement.names:
                self.imports[each.asname or each.name] = f"{prefix}.{each.name}"

    def _resolve_bases(self, found: Class) -> None:
        for base in found.node.bases:
            name = base.id if isinstance(base, ast.Name) else ""
            if name in self.classes and self.classes[name].node.lineno < found.node.lineno:
                found.bases.append(self.classes[name])
            elif self.qualified(base).rsplit(".", 1)[-1] not in ("Module", "object", "ABC", "Generic"):
                found.foreign_bases = True

    def qualified(self, node: ast.expr) -> str:
        """The full name of `F.softmax`, `nn.Linear`, ...: empty where it is not an imported name."""
        if isinstance(node, ast.Name):
            if node.id in self.imports:
                return self.imports[node.id]
            alias = self.constants.get(node.id)
            if isinstance(alias, (ast.Attribute, ast.Name)) and not (
                isinstance(alias, ast.Name) and alias.id == node.id
            ):
                return self.qualified(alias)
        if isinstance(node, ast.Attribute) and (owner := self.qualified(node.value)):
            return f"{owner}.{node.attr}"
        return ""

    @cached_property
    def names(self) -> set[str]:
        """Every name that the file gives a meaning of its own."""
        found = {each.id for each in ast.walk(self.tree) if isinstance(each, ast.Name)}
        found |= {each.arg for each in ast.walk(self.tree) if isinstance(each, ast.arg)}
        return found | set(self.imports) | set(self.functions) | set(self.classes)

    def spelling(self, full: str) -> str | None:
        """How this file may write a full name with its own top-level imports."""
        top: dict[str, str] = {}
        for statement in self.tree.body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                keep, self.imports = self.imports, top
                self._see_import(statement)
                self.imports = keep
        for name, meaning in sorted(top.items(), key=lambda each: -len(each[1])):
            if full == meaning or full.startswith(meaning + "."):
                return name + full[len(meaning) :]
        return None


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try)):
            yield from _top_level([*statement.body, *statement.orelse])
