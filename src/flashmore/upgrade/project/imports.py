"""Which file of a project a name comes from: imports followed to where the name is defined, nothing run.

`from package import Name` leads past the package's `__init__.py` to the file that defines it, so that a
package which imports all of its files does not tie all of them together.
"""

import ast
import warnings
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from flashmore.upgrade.notebooks.notebook import source_of
from flashmore.upgrade.project.files import Unreadable
from flashmore.upgrade.source.scopes import Function, dotted

INIT = "__init__.py"
MOST_FOLLOWED = 250
"""So many files are read for their imports in one go: where penalties are near, a few dozen are enough."""
Parts = tuple[str, ...]
Definition = tuple[Path, str | None]
"""A file, and a name of its top level; None for the file as a module."""


@dataclass
class Outline:
    """What a file imports and defines."""

    imports: dict[str, tuple[Parts, int, str | None]] = field(default_factory=dict)
    """Local name: module, how many dots stand before it, and the name in it (None: the module itself)."""
    stars: list[tuple[Parts, int]] = field(default_factory=list)
    plain: list[Parts] = field(default_factory=list)
    """`import a.b.c`: bound under the name `a`."""
    mentions: dict[str | None, set[str]] = field(default_factory=dict)
    """By definition of the top level (None: outside of all), the dotted names that stand in it."""

    @property
    def defined(self) -> set[str]:
        """Names of the top level's functions and classes, and of what is assigned there."""
        return {name for name in self.mentions if name is not None}

    def binds(self, name: str) -> bool:
        """Whether a name is that of an import."""
        return name in self.imports or any(parts[0] == name for parts in self.plain)


def outline(tree: ast.Module) -> Outline:
    """Read a file's imports and definitions."""
    found = Outline()
    for statement in tree.body:
        mentioned: set[str] = set()
        for node in leaves(statement):
            if isinstance(node, ast.Import):
                _see_import(node, found)
            elif isinstance(node, ast.ImportFrom):
                _see_import_from(node, found)
            else:
                mentioned.add(dotted(node))
        for name in _names_of(statement):
            found.mentions.setdefault(name, set()).update(mentioned)
    return found


def _see_import(node: ast.Import, found: Outline) -> None:
    for each in node.names:
        parts = tuple(each.name.split("."))
        if each.asname:
            found.imports[each.asname] = (parts, 0, None)
        else:
            found.plain.append(parts)


def _see_import_from(node: ast.ImportFrom, found: Outline) -> None:
    parts = tuple(node.module.split(".")) if node.module else ()
    for each in node.names:
        if each.name == "*":
            found.stars.append((parts, node.level))
        else:
            found.imports[each.asname or each.name] = (parts, node.level, each.name)


def _names_of(statement: ast.stmt) -> list[str | None]:
    if isinstance(statement, (Function, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [None, *(each.id for each in statement.targets if isinstance(each, ast.Name))]
    return [None]


def leaves(tree: ast.AST) -> Iterator[ast.AST]:
    """The imports and the whole dotted names in a tree: of `a.b.c` that one alone.

    A walk of its own, for `ast.walk` takes longer than parsing does.
    """
    ahead: list[ast.AST] = [tree]
    while ahead:
        node = ahead.pop()
        kind = type(node)
        if kind in _LEAVES or (kind is ast.Attribute and dotted(node)):
            yield node
            continue
        for name in node._fields:
            child = getattr(node, name, None)
            if type(child) is list:
                ahead += [each for each in child if isinstance(each, ast.AST)]
            elif isinstance(child, ast.AST) and name not in _PLAIN_FIELDS:
                ahead.append(child)


_LEAVES = {ast.Import, ast.ImportFrom, ast.Name}
_PLAIN_FIELDS = {"ctx", "op"}


class Imports:
    """The files of a project, and what leads from one to another.

    Args:
        files: resolved; a module that is none of them belongs to somebody else.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = set(files)
        self.allowed = MOST_FOLLOWED
        self.cut_off = False
        """Whether there were more files to follow than are followed."""
        self.outlines: dict[Path, Outline] = {}
        self.modules: dict[tuple[Path, Parts, int], Path | None] = {}
        self.found: dict[tuple[Path, str], set[Definition]] = {}

    @cached_property
    def folders(self) -> set[Path]:
        """Every folder that holds a file, however deep."""
        found: set[Path] = set()
        for path in self.files:
            for folder in path.parents:
                if folder in found:
                    break
                found.add(folder)
        return found

    @cached_property
    def bases(self) -> dict[str, list[Path]]:
        """By name of a package that is no other one's part: the folders that it lies in."""
        found: dict[str, list[Path]] = {}
        packages = {path.parent for path in self.files if path.name == INIT}
        for package in sorted(packages):
            if package.parent not in packages:
                found.setdefault(package.name, []).append(package.parent)
        return found

    @property
    def exhausted(self) -> bool:
        """Whether no further file is read until `follow_more`."""
        return len(self.outlines) >= self.allowed

    def follow_more(self) -> None:
        """From now on so many further files are read."""
        self.allowed = len(self.outlines) + MOST_FOLLOWED
        self.found.clear()

    def outline(self, path: Path) -> Outline:
        """What a file imports and defines; nothing where it cannot be read."""
        if path not in self.outlines:
            if self.exhausted:
                self.cut_off = True
                return Outline()
            tree = parsed(path)
            self.outlines[path] = outline(tree) if tree is not None else Outline()
        return self.outlines[path]

    def module(self, importer: Path, parts: Parts, level: int) -> Path | None:
        """The file of a module, or the folder of a package without `__init__.py`; None for others'."""
        key = (importer.parent, parts, level)
        if key not in self.modules:
            within = (self._within(base, parts) for base in self._bases(importer, parts, level))
            self.modules[key] = next((found for found in within if found is not None), None)
        return self.modules[key]

    def _bases(self, importer: Path, parts: Parts, level: int) -> list[Path]:
        if level:
            return [importer.parents[min(level, len(importer.parents)) - 1]]
        above = [folder for folder in importer.parents if folder in self.folders]
        return [*above, *self.bases.get(parts[0], ())]

    def _within(self, base: Path, parts: Parts) -> Path | None:
        path = base.joinpath(*parts)
        if parts and (file := path.with_name(f"{path.name}.py")) in self.files:
            return file
        if path / INIT in self.files:
            return path / INIT
        return path if path in self.folders else None

    def sources(self, path: Path, name: str) -> set[Definition]:
        """What a dotted name in a file stands for, where that is defined; nothing for what is others'."""
        if (path, name) not in self.found:
            self.found[path, name] = self._sources(path, name)
        return self.found[path, name]

    def _sources(self, path: Path, name: str) -> set[Definition]:
        head, *rest = name.split(".")
        own = self.outline(path)
        found: set[Definition] = set()
        if head in own.imports:
            parts, level, inner = own.imports[head]
            found |= self._in_module(path, parts, level, [*([inner] if inner else []), *rest])
        for parts in own.plain:
            if parts[0] == head:
                found |= self._in_module(path, (head,), 0, rest)
                break
        if not found and head not in own.defined:
            for parts, level in own.stars:
                found |= self._in_module(path, parts, level, [head, *rest], only_defined=True)
        return found

    def _in_module(
        self, importer: Path, parts: Parts, level: int, names: list[str], *, only_defined: bool = False
    ) -> set[Definition]:
        start = self.module(importer, parts, level)
        return set() if start is None else self._defining(start, names, set(), only_defined)

    def _defining(
        self, module: Path, names: list[str], seen: set[tuple[Path, Parts, bool]], only_defined: bool
    ) -> set[Definition]:
        """Follow names into a module: submodules, what it imports from elsewhere, what it defines.

        What was `seen` on any way led to nothing, or is being followed.
        """
        here = (module, tuple(names), only_defined)
        if here in seen:
            return set()
        seen.add(here)
        is_file = module in self.files
        if not names:
            return {(module, None)} if is_file and not only_defined else set()
        first, *rest = names
        folder = module.parent if module.name == INIT else module
        own = self.outline(module) if is_file else Outline()
        if first in own.imports:
            parts, level, inner = own.imports[first]
            there = self.module(module, parts, level)
            if there is None:
                return set()
            if there != module:  # `from . import part` in a package leads back to it
                return self._defining(there, [*([inner] if inner else []), *rest], seen, only_defined)
        if first not in own.defined and (module.name == INIT or not is_file):
            inside = self._within(folder, (first,))
            if inside is not None:
                return self._defining(inside, rest, seen, only_defined)
        if first in own.defined:
            return {(module, first)}
        for parts, level in own.stars:
            there = self.module(module, parts, level)
            if there is not None and (found := self._defining(there, names, seen, True)):
                return found
        return {(module, None)} if is_file and not only_defined else set()

    def imported(self, path: Path) -> set[Path]:
        """Every file of the project that a file takes something from."""
        own = self.outline(path)
        mentioned = {name for names in own.mentions.values() for name in names}
        # What is imported may be passed on without being mentioned.
        heads = {name.partition(".")[0] for name in mentioned}
        silent = own.imports.keys() - heads | {".".join(each) for each in own.plain if each[0] not in heads}
        found = {file for file, _ in self.taken(path, mentioned | silent)}
        stars = (self.module(path, parts, level) for parts, level in own.stars)
        return found.union(each for each in stars if each is not None and each in self.files) - {path}

    def taken(self, path: Path, names: Iterable[str]) -> set[Definition]:
        """What some of the dotted names in a file stand for, where that is defined in the project."""
        own = self.outline(path)
        heads = {*own.imports, *(parts[0] for parts in own.plain)}
        return {
            found
            for name in names
            if own.stars or name.partition(".")[0] in heads
            for found in self.sources(path, name)
        }

    def aliases(self, path: Path, known: Set[Definition]) -> set[str]:
        """The names under which a file imports one of some definitions, for itself or for others."""
        return {name for name in self.outline(path).imports if not known.isdisjoint(self.sources(path, name))}


def parsed(path: Path) -> ast.Module | None:
    """A file's syntax tree, in silence; None where it has none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what Python warns of is no part of the answer
            return ast.parse(source_of(path))
    except (Unreadable, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
