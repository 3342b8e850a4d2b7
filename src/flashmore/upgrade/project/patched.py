"""What other files replace or hook: functions of torch, numbers that a rule evaluates, layers."""

import ast
import re
from collections.abc import Callable, Iterable, Sequence, Set
from functools import cached_property
from pathlib import Path

from flashmore.upgrade.formulas.evaluate import Unknown, constant_of
from flashmore.upgrade.project.definitions import Definitions
from flashmore.upgrade.project.files import real
from flashmore.upgrade.project.texts import Texts
from flashmore.upgrade.site import Searched, Site
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.replaced import EVERY, HOOK, exchanged, hooked, stored
from flashmore.upgrade.source.scopes import is_self

_STORE = re.compile(
    rb"^[ \t]*(?!self\.\w+[ \t]*=)[A-Za-z_][\w.]*\.\w+[ \t]*=(?!=)|\bsetattr\(|\bpatch\b|__dict__\[",
    re.MULTILINE,
)
"""A store on something else than `self`."""
_HOOK = re.compile(HOOK.pattern.encode())
_SCALE = re.compile(r"\bscale=[^,\n]*\bself\.(\w+)")
_WORD = re.compile(r"[A-Za-z_]\w*")


class Patched:
    """The attributes that files store on modules and on other objects, read when they are first asked for.

    Args:
        texts: the files of the project, or of several.
        given: the folders that are searched.
        imported: of a file, those that it imports.
        reached: of a file and a line, the files whose models the line may be given.
    """

    def __init__(
        self,
        texts: Texts,
        given: Sequence[Path],
        imported: Callable[[Path], Iterable[Path]],
        reached: Callable[[Path, int], Set[Path]],
    ) -> None:
        self.texts = texts
        self.given = given
        self.imported = imported
        self.reached = reached
        self.roots: dict[Path, Path] = {}

    def why_not(self, found: Searched, site: Site, evaluated: bool) -> str | None:
        """Why lines may mean something else when another file has run; else None.

        Args:
            found: the file of the place.
            site: the place.
            evaluated: whether the rewriting holds for the numbers alone that the file's names stand for.
        """
        first, last = found.lines_of(site)
        lines = found.source.splitlines()[first - 1 : last]
        words = {word for line in lines for word in _WORD.findall(line)}
        written = {word for edit in site.edits for word in _WORD.findall(edit.text)} - words
        own = real(Path(found.path))
        operators = {name for name in self._torchs if name.startswith("__")}
        for name in sorted((words | written | operators) & self._torchs.keys()):
            for path, line, full in self._torchs[name]:
                # What the old lines call was searched for with the file's own replacements in mind.
                if self._together(path, own) and (path != own or name in written | operators):
                    return f"`{full}` is replaced in {path.name}, line {line}"
        for name in sorted({*site.uncalled}):
            for path, line in (*self._hooked.get(name, ()), *self._hooked.get(EVERY, ())):
                if own in self._classes(path, line, name):
                    return (
                        f"`{name}` would no longer be called, and {path.name}, line {line}, registers a hook"
                    )
        numbers = _numbers(found.source) if evaluated and words & self._others.keys() else set()
        for name in sorted(words & numbers & self._others.keys()):
            for path, line in self._others[name]:
                if path != own and self._together(path, own):
                    return f"`{name}` is set in {path.name}, line {line}, perhaps to another number"
        return self._why_exchanged(site, own, words)

    def _why_exchanged(self, site: Site, own: Path, words: set[str]) -> str | None:
        """Why a layer, the scale or a function may be another than its file says; else None."""
        read = {*site.uncalled, *(name for edit in site.edits for name in _SCALE.findall(edit.text))}
        for name in sorted(read & self._exchanged.keys()) + [EVERY] * bool(site.uncalled):
            stored = min(site.uncalled) if name == EVERY else name
            for path, line, of_part in self._exchanged.get(name, ()):
                if of_part if path == own else own in self._classes(path, line, stored):
                    return f"`{stored}` may be replaced in {path.name}, line {line}"
        classes = {"Softmax", "Dropout"} if site.uncalled else set()
        for name, places in self._of_modules.items():
            for path, line, module in places:
                parts = module.split(".")
                of_torch = module.startswith("torch.nn") and not classes.isdisjoint((name, *parts))
                of_own = path != own and own.stem in parts and name in words | classes
                if (of_torch or of_own) and self._together(path, own):
                    return f"`{name}` is replaced in {path.name}, line {line}"
        return None

    def _together(self, one: Path, other: Path) -> bool:
        """Whether two files may run in one program: of one project, or of two that the first connects."""
        theirs = self._root(other)
        return self._root(one) == theirs or theirs in map(self._root, self.imported(one))

    def _root(self, path: Path) -> Path:
        """The repository of a file; where there is none, the folder that was given."""
        if path.parent not in self.roots:
            above = (each for each in path.parents if (each / ".git").exists())
            given = (each for each in self.given if path.is_relative_to(each))
            self.roots[path.parent] = next(above, None) or next(given, path.parent)
        return self.roots[path.parent]

    def _modules(self, pattern: re.Pattern[bytes]) -> dict[Path, Module]:
        """The files in which a pattern occurs."""
        found = {path: Definitions(path).module(path) for path in self.texts.matching(pattern)}
        return {path: module for path, module in found.items() if module is not None}

    @cached_property
    def _hooked(self) -> dict[str, list[tuple[Path, int]]]:
        """By name, the places that see the calls of an attribute by a hook."""
        found: dict[str, list[tuple[Path, int]]] = {}
        for path, module in self._modules(_HOOK).items():
            for name, line in hooked(module.tree).items():
                found.setdefault(name, []).append((path, line))
        return found

    def _classes(self, path: Path, line: int, name: str) -> Set[Path]:
        """The files whose classes a hook means.

        These are files that it imports from and that store the attribute; else all that it may be given.
        """
        stores = re.compile(rb"\bself\." + name.encode() + rb"\b[^=\n]*=")
        near = Definitions(path).imports.imported(path)
        return {each for each in near if stores.search(self.texts.of(each))} or self.reached(path, line)

    @cached_property
    def _stores(self) -> dict[Path, Module]:
        """The files that store something on another object than `self`."""
        return self._modules(_STORE)

    @cached_property
    def _torchs(self) -> dict[str, list[tuple[Path, int, str]]]:
        """By its last name, what is replaced in torch, with the places."""
        found: dict[str, list[tuple[Path, int, str]]] = {}
        for path, module in self._stores.items():
            for full, line in module.patched.items():
                found.setdefault(full.rpartition(".")[2], []).append((path, line, full))
        return found

    @cached_property
    def _exchanged(self) -> dict[str, list[tuple[Path, int, bool]]]:
        """By name, the places where an object's attribute becomes a layer, a tensor or a function."""
        found: dict[str, list[tuple[Path, int, bool]]] = {}
        for path, module in self._stores.items():
            for name, line, of_part in exchanged(module.tree):
                found.setdefault(name, []).append((path, line, of_part))
        return found

    @cached_property
    def _of_modules(self) -> dict[str, list[tuple[Path, int, str]]]:
        """By name, what is replaced in imported modules: `model.attend = ...`, `model.F.softmax = ...`."""
        found: dict[str, list[tuple[Path, int, str]]] = {}
        for path, module in self._stores.items():
            for full, line in module.exchanged.items():
                owner, _, name = full.rpartition(".")
                found.setdefault(name, []).append((path, line, owner))
        return found

    @cached_property
    def _others(self) -> dict[str, list[tuple[Path, int]]]:
        """By name, the places where an attribute of another object than `self` is set."""
        found: dict[str, list[tuple[Path, int]]] = {}
        for path, module in self._stores.items():
            for owner, name, line in stored(module.tree):
                if not is_self(owner):
                    found.setdefault(name, []).append((path, line))
        return found


def _numbers(source: str) -> set[str]:
    """The names of a file's constants and of its classes' attributes that are numbers."""
    module = Module(ast.parse(source))
    made = [*module.constants.items()]
    for each in module.classes.values():
        made += [(name, value) for name, values in each.own_assignments.items() for value in values]
    return {name for name, value in made if _is_number(value, module)}


def _is_number(value: ast.expr, module: Module) -> bool:
    try:
        constant_of(value, module)
    except Unknown:
        return False
    return True
