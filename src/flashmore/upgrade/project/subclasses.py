"""Subclasses in other files, which may give a class's attributes and methods another meaning."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from flashmore.upgrade.project.definitions import Definitions
from flashmore.upgrade.project.texts import Texts
from flashmore.upgrade.site import Searched, Site
from flashmore.upgrade.source.attributes import Attribute, kind_of
from flashmore.upgrade.source.classes import Class

FORMULAS = ("FM002", "FM004", "FM005", "FM006", "FM007")
"""The rules that evaluate numbers of the source."""
_CLASS = re.compile(rb"^[ \t]*class\s+(\w+)\s*\(([^)]*)\)\s*:", re.MULTILINE)
_WORD = re.compile(rb"[A-Za-z_]\w*")
_ALIAS = re.compile(rb"\b(\w+)\s+as\s+(\w+)")


class Subclasses:
    """The classes of a project by what they inherit from, read when they are first asked for.

    Args:
        texts: the files of the project.
    """

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.by_base: dict[bytes, set[Path]] | None = None
        self.below: dict[bytes, set[bytes]] = {}
        """By name, those of the classes that inherit from it, and those that it is imported under."""

    def why_not(self, found: Searched, site: Site) -> str | None:
        """Why the lines of a method may mean something else in a subclass of another file; else None."""
        name, _, method = site.symbol.partition(".")
        first, last = found.lines_of(site)
        lines = "\n".join([*found.source.splitlines()[first - 1 : last], *(each.text for each in site.edits)])
        read = {each for each in re.findall(r"\bself\.(\w+)", lines) if method}
        path = Path(found.path)
        for other in sorted(self._files_below(name)) if read else ():
            for below, base in _pairs(Definitions(other), path, name):
                for each in sorted(read):
                    if (line := _another(below, base, each, site.code in FORMULAS)) is not None:
                        shown = f"{below.node.name}` ({other.name}, line {line})"
                        return f"`self.{each}` means something else in the subclass `{shown}"
        return None

    def _files_below(self, name: str) -> set[Path]:
        """The files with a class that may inherit from one of this name, directly or through others."""
        if self.by_base is None:
            self.by_base = {}
            for path in self.texts.files:
                for name_below, base in _bases(self.texts.of(path)):
                    self.by_base.setdefault(base, set()).add(path)
                    self.below.setdefault(base, set()).add(name_below)
        found: set[Path] = set()
        ahead = {name.encode()}
        seen: set[bytes] = set()
        while ahead:
            seen |= ahead
            found |= {path for each in ahead for path in self.by_base.get(each, ())}
            ahead = {more for each in ahead for more in self.below.get(each, ())} - seen
        return found


def _bases(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The names of a file's classes, each with one that it inherits from; and its other names."""
    for name, bases in _CLASS.findall(data):
        yield from ((name, base) for base in _WORD.findall(bases))
    yield from ((alias, name) for name, alias in _ALIAS.findall(data))


def _pairs(definitions: Definitions, path: Path, name: str) -> Iterator[tuple[Class, Class]]:
    """The classes of a file that inherit from a class of another one, and that class."""
    module = definitions.module(definitions.path)
    for below in module.classes.values() if module is not None else ():
        for base in [*below.lineage()][1:]:
            if base.node.name == name and base.module.path is not None and base.module.path.samefile(path):
                yield below, base


def _another(below: Class, base: Class, name: str, evaluated: bool) -> int | None:
    """The line where a subclass gives an attribute or a method another meaning.

    Args:
        below: the subclass.
        base: the class.
        name: the attribute.
        evaluated: whether the rewriting holds for the number alone that the class stores there.
    """
    for each in below.lineage():
        if each is base:
            return None
        if name in each.own_methods:
            return each.own_methods[name].lineno
        if made := each.own_assignments.get(name):
            was, now = (kind_of(Attribute("", one, name), one.module) for one in (base, below))
            numbers = evaluated and was.name == now.name == "number"
            other = numbers and ast.dump(made[0]) != ast.dump(base.assignments(name)[0])
            if "unknown" in (was.name, now.name) or was.name != now.name or other:
                return getattr(made[0], "lineno", 0)
    return None
