"""The definitions that a file's imports lead to, in other files of its project: read, never imported."""

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from flashmore.upgrade.budget import unlimited
from flashmore.upgrade.project.files import Unreadable, content, decoded, is_file, is_folder, real
from flashmore.upgrade.project.imports import INIT, Imports, Parts
from flashmore.upgrade.project.texts import Texts
from flashmore.upgrade.project.walk import around_package, project_files, root_of
from flashmore.upgrade.source.module import Found, Module
from flashmore.upgrade.source.replaced import HOOK
from flashmore.upgrade.source.scopes import is_self, last

_HOOK = re.compile(HOOK.pattern.encode())
MOST_MODULES = 50
"""So many other files are read for the names of one."""


class _Existing:
    """The files or the folders below a root, asked for one by one; no link that leads out of it is one."""

    def __init__(self, root: Path, *, folders: bool) -> None:
        self.root = root
        self.folders = folders
        self.known: dict[Path, bool] = {}

    def __contains__(self, path: object) -> bool:
        assert isinstance(path, Path)
        if path not in self.known:
            exists = is_folder(path) if self.folders else is_file(path)
            self.known[path] = exists and real(path).is_relative_to(self.root)
        return self.known[path]


class _Lazy(Imports):
    """Where modules lie, without a list of the project's files."""

    def __init__(self, root: Path) -> None:
        super().__init__(())
        self.root = root
        self.files = _Existing(root, folders=False)  # type: ignore[assignment]
        self.folders = _Existing(root, folders=True)  # type: ignore[assignment]
        self.bases = {}

    def _bases(self, importer: Path, parts: Parts, level: int) -> list[Path]:
        found = super()._bases(importer, parts, level)
        return found if level else [*found, self.root / "src"]


@lru_cache(maxsize=128)
def _tree(data: bytes) -> ast.Module | None:
    """A file's syntax tree; None where it has none."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(decoded(data)[0])
    except (Unreadable, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@lru_cache(maxsize=1)
def texts_around(folder: Path) -> Texts:
    """The files of the project around a folder, as they were when one search asked first."""
    return Texts(real(each) for each in project_files(folder)[0])


class Definitions:
    """What the names of one file, and of those that it imports from, stand for.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = real(path)
        self.imports = _Lazy(root_of(self.path) or around_package(self.path.parent))
        self.modules: dict[Path, Module | None] = {}

    def module(self, path: Path) -> Module | None:
        """The names of another file."""
        if path not in self.modules:
            self.modules[path] = None
            with (
                unlimited(),
                suppress(Unreadable, RecursionError),
            ):  # what is left must not depend on what was read before
                tree = _tree(content(path)) if len(self.modules) <= MOST_MODULES else None
                self.modules[path] = Module(tree, self, path) if tree is not None else None
        return self.modules[path]

    def find(self, importer: Path | None, full: str) -> Found | str | None:
        """What a full name of an import is: a definition, or its name in a library; None if that is unclear.

        Args:
            importer: the file that imports it.
            full: its name, with a dot in front for each level of a relative import.
        """
        return self._find(importer or self.path, full, set())

    def _find(self, importer: Path, full: str, seen: set[tuple[Path, str]]) -> Found | str | None:
        parts = tuple(full.lstrip(".").split("."))
        level = len(full) - len(full.lstrip("."))
        if (importer, full) in seen or (not level and parts[0] in sys.stdlib_module_names):
            return None
        seen.add((importer, full))
        inside = False
        for count in range(0 if level else 1, len(parts)):
            there = self.imports.module(importer, parts[:count], level)
            if there is None or there == importer:
                continue
            inside = True
            if (module := self.module(there) if there in self.imports.files else None) is None:
                continue
            found = self._defined(there, module, parts[count:], seen)
            if found is not None or parts[count] in module.meanings:
                return found
        return None if inside or level else full

    def _defined(
        self, path: Path, module: Module, names: Parts, seen: set[tuple[Path, str]]
    ) -> Found | str | None:
        """What names lead to from the top level of a module."""
        name, *rest = names
        meanings = module.meanings.get(name)
        if meanings is None:
            return self._starred(path, module, names, seen)
        if len(meanings) > 1:
            return None
        (meaning,) = meanings
        if meaning:
            return self._find(path, ".".join((meaning, *rest)), seen)
        if rest:
            return None
        return Found(module, name) if module.holds(name) else None

    def _starred(
        self, path: Path, module: Module, names: Parts, seen: set[tuple[Path, str]]
    ) -> Found | str | None:
        """What `from other import *` brings, where just one such import, and no library's after it, may."""
        found: list[Found | str] = []
        for there in self._stars(path, module.tree) if not names[0].startswith("_") else ():
            if there is None:
                found.clear()
                continue
            other = self.module(there) if there in self.imports.files else None
            if other is None or ("__all__" in other.meanings and names[0] not in _exported(other)):
                continue
            if (one := self._defined(there, other, names, seen)) is not None:
                found.append(one)
        return found[0] if len(found) == 1 else None

    def _stars(self, path: Path, tree: ast.Module) -> Iterator[Path | None]:
        """The files of which a file imports all names; None for a library."""
        for each in tree.body:
            if isinstance(each, ast.ImportFrom) and any(name.name == "*" for name in each.names):
                parts = tuple((each.module or "").split(".")) if each.module else ()
                yield self.imports.module(path, parts, each.level)

    def user(self, name: str) -> Module | None:
        """The one other file that mentions a class of this one, if it is imported there under its name."""
        texts = texts_around(self.path.parent)
        others = [path for path in texts.mentioning({name}) if path != self.path]
        other = self.module(others[0]) if len(others) == 1 else None
        meant = other.meanings.get(name, set()) if other is not None else set()
        found = self.find(others[0], *meant) if len(meant) == 1 and meant != {""} else None
        mine = isinstance(found, Found) and found.name == name and found.module.path == self.path
        return Module(other.tree, Definitions(others[0]), others[0]) if other is not None and mine else None

    def exports(self, module: Module, name: str, of: str, besides: Path | None = None) -> bool:
        """Whether other files may use a name of a module, or a package passes it on.

        Args:
            module: the module.
            name: the name: of a function or a class, or of an attribute of `self`.
            of: the class whose attribute it is; empty if it is none.
            besides: a file that may.
        """
        head, texts = of or name, texts_around(self.path.parent)
        listed = {str(each.value) for each in ast.walk(module.constants.get("__all__", ast.Constant(None)))
                  if isinstance(each, ast.Constant)}  # fmt: skip
        others = (path for path in texts.mentioning({name, head}) if path not in (self.path, besides))
        packages = [path for path in texts.files if path.name == INIT and path != self.path]
        if not of and name in module.classes and texts.matching(_HOOK):
            return True  # one may see what a layer of this class returns
        trees = {path: _tree(texts.of(path)) for path in texts.files if b"import *" in texts.of(path)}
        stars = {path: {*self._stars(path, tree)} for path, tree in trees.items() if tree is not None}
        having = {self.path, *texts.mentioning({head})}
        while more := {path for path, whole in stars.items() if path not in having and whole & having}:
            having |= more
        passed_on = not having.isdisjoint(packages)
        named = passed_on or bool({name, head} & listed)
        known = module.classes.get(of)
        above = {last(base) for each in (known.lineage() if known else ()) for base in each.node.bases}
        return named or any(_uses(texts.of(path), name, of, above) for path in others)

    def reads(self, name: str) -> bool:
        """Whether another file may read a variable of this one, since it mentions both by name."""
        own = self.path.parent.name if self.path.name == INIT else self.path.stem
        texts = texts_around(self.path.parent)
        return bool({*texts.mentioning({name})} & {*texts.mentioning({own})} - {self.path})

    def starred(self, module: Module, name: str) -> Found | str | None:
        """What a name of a module is that it imports with a star."""
        return self._starred(module.path or self.path, module, (name,), set())


def _uses(source: bytes, name: str, of: str, above: set[str]) -> bool:
    """Whether a file's code may use what has a name in another file: see `exports`.

    `self.name` in a class that has nothing to do with the other one, nor with those `above` it, is something
    else, and so is what the file defines itself.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return True
    nodes, imported = [*ast.walk(tree)], [each for each in ast.walk(tree) if isinstance(each, ast.alias)]
    if any(each.name == "*" or name in (each.name, each.asname) for each in imported) and not of:
        return True
    own = {each.name for each in tree.body if isinstance(each, ast.ClassDef | ast.FunctionDef)}
    classes = [each for each in nodes if isinstance(each, ast.ClassDef)]
    derived = any(last(base) == of for each in classes for base in each.bases)
    if of and (derived or any(each.name == of and each.asname for each in imported)):
        return True
    on_self = {
        id(node)
        for each in classes
        if of and each.name not in above
        for node in ast.walk(each)
        if isinstance(node, ast.Attribute) and is_self(node.value)
    }
    fields = ("attr", "value") if of or name in own else ("id", "attr", "value")
    asked = (each for each in nodes if id(each) not in on_self)
    return any(name in [getattr(each, field, None) for field in fields] for each in asked)


def _exported(module: Module) -> set[str]:
    """The names in `__all__`, as far as they are written there."""
    node = module.constants.get("__all__")
    elements = node.elts if isinstance(node, (ast.List, ast.Tuple)) else []
    return {str(each.value) for each in elements if isinstance(each, ast.Constant)}
