"""What a value was made by: from an output that is differentiated back to the modules it went through.

Names are followed to all that may be stored in them, whatever the order: through a function's own lines, its
callers' arguments, the attributes of its class, and imports. What is found is more than what ran, unless an
argument's callers, or an attribute's origin, cannot be seen.
"""

import ast
import builtins
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from flashmore.upgrade.project.imports import Definition, Imports, leaves, parsed
from flashmore.upgrade.project.texts import Texts
from flashmore.upgrade.source.scopes import Function, arguments_of, bound_arguments, dotted, last

_DEEPEST = 4
"""So many calls are followed back to their callers."""
_DYNAMIC = {"getattr", "import_module", "__import__", "eval", "exec", "globals", "entry_points"}
"""What may lead to anything, by a name that is computed."""
MOST_TRACED = 30
"""So many places are followed back in one project; what others differentiate counts as unknown."""
MOST_CALLED = 15
"""So many functions' callers are looked for in one project."""
MOST_MENTIONS = 20
"""A name in more files than these may mean anything."""
MOST_DEFINITIONS = 300
"""What takes more to compute an output is most of the project: nothing can be said of its parts."""
Parents = dict[ast.AST, ast.AST]
Called = tuple[Path, ast.Call | None]
"""A file, and a call in it; None for a mention that is no call."""


@dataclass(frozen=True)
class Place:
    """A node's file, and the functions and classes that it stands in, from the inside."""

    path: Path
    within: tuple[ast.AST, ...]

    @property
    def function(self) -> Function | None:
        """The innermost function."""
        return next((each for each in self.within if isinstance(each, Function)), None)

    @property
    def owner(self) -> ast.ClassDef | None:
        """The innermost class."""
        return next((each for each in self.within if isinstance(each, ast.ClassDef)), None)


@dataclass
class Made:
    """What made a value.

    Args:
        definitions: functions, classes and variables of the project's top levels; more than took part.
        lines: a file, and the first and the last line of an expression or a method that took part.
        known: whether nothing else took part.
    """

    definitions: set[Definition] = field(default_factory=set)
    lines: set[tuple[Path, int, int]] = field(default_factory=set)
    known: bool = True

    def holds(self, path: Path, name: str, first: int, last: int) -> bool:
        """Whether some lines of a definition took part, as far as is known."""
        return (path, name) in self.definitions or any(
            path == each and first <= end and start <= last for each, start, end in self.lines
        )


class Origins:
    """Follows values through a project.

    Args:
        imports: the files of the project, and what leads from one to another.
    """

    def __init__(self, imports: Imports) -> None:
        self.imports = imports
        self.texts = Texts(imports.files)
        self.trees: dict[Path, ast.Module | None] = {}
        self.parents: dict[Path, Parents] = {}
        self.stores: dict[Function, dict[str, list[ast.AST]]] = {}
        self.called: dict[tuple[str, Definition | None], list[Called]] = {}
        self.left = MOST_TRACED

    def of(self, path: Path, at: ast.AST, values: Sequence[ast.expr], stop: Set[str] = frozenset()) -> Made:
        """What made some expressions.

        Args:
            path: their file.
            at: the node of the file's tree, as `tree` gives it, where they stand.
            values: the expressions.
            stop: names of which it does not matter what made them.
        """
        trace = _Trace(self)
        self.left -= 1
        if self.left < 0 or not values:
            return Made(known=False)
        for each in values:
            trace.follow(each, self.place(path, at), frozenset(stop), _DEEPEST)
        trace.close()
        return trace.made

    def tree(self, path: Path) -> ast.Module | None:
        """A file's syntax tree, the same one every time."""
        if path not in self.trees:
            self.trees[path] = parsed(path)
        return self.trees[path]

    def stored(self, function: Function) -> dict[str, list[ast.AST]]:
        """What a function stores, by name."""
        if function not in self.stores:
            self.stores[function] = _stored(function)
        return self.stores[function]

    def place(self, path: Path, node: ast.AST) -> Place:
        """Where a node stands."""
        if path not in self.parents:
            inside = ast.walk(tree) if (tree := self.tree(path)) is not None else ()
            self.parents[path] = {child: each for each in inside for child in ast.iter_child_nodes(each)}
        within, at = [], node
        while (parent := self.parents[path].get(at)) is not None:
            at = parent
            within.append(at)
        return Place(path, tuple(within))

    def calls(self, name: str, definition: Definition | None) -> list[Called]:
        """Every call in the project of something of a name; None where it is mentioned without being called.

        Args:
            name: the name.
            definition: what it names, where that may be imported under another one.
        """
        if (name, definition) not in self.called:
            some = len(self.called) < MOST_CALLED
            self.called[name, definition] = [*self._calls(name, definition)] if some else []
        return self.called[name, definition]

    def _calls(self, name: str, definition: Definition | None) -> Iterator[Called]:
        names, before, near = {name}, set[str](), self.texts.mentioning({name})
        while definition is not None and names - before and len(near) <= MOST_MENTIONS:
            before = set(names)
            for path in near:
                names |= self.imports.aliases(path, {definition})
            near = self.texts.mentioning(names)
        for path in near if len(near) <= MOST_MENTIONS else ():
            nodes = list(ast.walk(tree)) if (tree := self.tree(path)) is not None else []
            called = {id(each.func) for each in nodes if isinstance(each, ast.Call)}
            for node in nodes:
                match node:
                    case ast.Call(func=ast.Name(id=one) | ast.Attribute(attr=one)) if one in names:
                        yield path, node
                    case ast.Name(id=one) | ast.Attribute(attr=one) if one in names:
                        if id(node) not in called:
                            yield path, None


class _Trace:
    def __init__(self, origins: Origins) -> None:
        self.origins = origins
        self.made = Made()
        self.seen: set[tuple[Path, ast.AST | str, ast.AST | None, frozenset[str]]] = set()

    def follow(self, value: ast.AST, place: Place, stop: frozenset[str], depth: int) -> None:
        """All that an expression mentions."""
        here = (place.path, value, place.function, stop)
        if here in self.seen:
            return
        self.seen.add(here)
        first = getattr(value, "lineno", 0)
        self.made.lines.add((place.path, first, getattr(value, "end_lineno", None) or first))
        for leaf in leaves(value):
            head, _, rest = dotted(leaf).partition(".")
            if head == "self" and rest:
                self._attribute(rest.partition(".")[0], place, depth)
            elif head == "self" and place.owner is not None:
                self._itself(place.owner, place.path)
            elif head and head != "self" and head not in stop:
                self._name(head, dotted(leaf), place, stop, depth)

    def _itself(self, owner: ast.ClassDef, path: Path) -> None:
        """What `self(x)` runs: a class, and those of the file that inherit from it."""
        tree = self.origins.tree(path)
        found = [owner]
        for each in tree.body if tree is not None else ():
            names = {one.name for one in found}
            if isinstance(each, ast.ClassDef) and any(last(base) in names for base in each.bases):
                found.append(each)
        self.made.definitions |= {(path, each.name) for each in found}
        methods = {one.name for each in found for one in each.body if isinstance(one, Function)}
        self.made.known &= not methods.isdisjoint(("forward", "__call__"))

    def _name(self, name: str, whole: str, place: Place, stop: frozenset[str], depth: int) -> None:
        self.made.known &= name not in _DYNAMIC
        for at, outer in enumerate(place.within):
            if not isinstance(outer, Function):
                continue
            inside = Place(place.path, place.within[at:])
            stored = self.origins.stored(outer).get(name, [])
            for value in stored:
                self.follow(value, inside, stop, depth)
            if name in {each.arg for each in arguments_of(outer.args)}:
                self._argument(name, outer, inside, stop, depth)
            elif not stored:
                continue
            return
        imports, path = self.origins.imports, place.path
        sources, own = imports.sources(path, whole), imports.outline(path)
        self.made.definitions |= sources
        if name in own.defined:
            self.made.definitions.add((path, name))
        elif not (sources or own.binds(name) or hasattr(builtins, name)):
            self.made.known = False

    def _argument(
        self, name: str, function: Function, place: Place, stop: frozenset[str], depth: int
    ) -> None:
        """What the callers of a function pass for an argument."""
        owner = place.within[1] if len(place.within) > 1 else None
        called, top = function.name, len(place.within) <= 2
        if isinstance(owner, ast.ClassDef) and called == "__init__":
            called, top = owner.name, len(place.within) == 3
        if depth == 0 or called == "forward" or (called.startswith("__") and called.endswith("__")):
            self.made.known = False
            return
        definition = (place.path, called) if top else None
        calls = self.origins.calls(called, definition)
        self.made.known &= bool(calls)
        for path, call in calls:
            method = isinstance(owner, ast.ClassDef)
            given = bound_arguments(function, call, method=method) if call is not None else {}
            value = given.get(name)
            if value is None or call is None:
                self.made.known = False
                continue
            stops = {each.id for key in stop if isinstance(each := given.get(key), ast.Name)}
            self.follow(value, self.origins.place(path, call), frozenset(stops), depth - 1)

    def _attribute(self, name: str, place: Place, depth: int) -> None:
        """A method of the class, or what is stored on `self`."""
        owner, found = place.owner, False
        for each in owner.body if owner is not None else ():
            if not isinstance(each, Function):
                continue
            inside = self.origins.place(place.path, each)
            inside = Place(inside.path, (each, *inside.within))
            if each.name == name:
                found = True
                self.follow(each, inside, frozenset(), depth)
            for value in self.origins.stored(each).get(f".{name}", []):
                found = True
                self.follow(value, inside, frozenset(), depth)
        self.made.known &= found

    def close(self) -> None:
        """Add all that the definitions mention, and what that mentions."""
        imports, ahead = self.origins.imports, [*self.made.definitions]
        direct = set(ahead)
        while ahead:
            if len(self.made.definitions) > MOST_DEFINITIONS:
                self.made.definitions, self.made.known = direct, False
                return
            path, name = ahead.pop()
            mentions = imports.outline(path).mentions.get(name, set())
            self.made.known &= not any(each.rpartition(".")[2] in _DYNAMIC for each in mentions)
            own = {(path, each.partition(".")[0]) for each in mentions}
            defined = {each for each in own if each[1] in imports.outline(path).defined}
            new = (defined | imports.taken(path, mentions)) - self.made.definitions
            self.made.definitions |= new
            ahead += new
        names = {name.encode() for _, name in self.made.definitions if name}  # a decorator may register
        self.made.known &= not imports.cut_off and names.isdisjoint(self.origins.texts.decorators)


def _stored(function: Function) -> dict[str, list[ast.AST]]:
    """What a function stores, by name; under `.name` what it stores in an attribute of that name."""
    found: dict[str, list[ast.AST]] = {}
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=targets, value=value):
                pass
            case (
                ast.AugAssign(target=target, value=value)
                | ast.AnnAssign(target=target, value=ast.expr() as value)
                | ast.NamedExpr(target=target, value=value)
                | ast.For(target=target, iter=value)
                | ast.AsyncFor(target=target, iter=value)
                | ast.comprehension(target=target, iter=value)
                | ast.withitem(optional_vars=ast.expr() as target, context_expr=value)
            ):
                targets = [target]
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if node is not function:
                found.setdefault(name, []).extend(node.body)
                continue
            case _:
                continue
        for each in (inner for target in targets for inner in ast.walk(target)):
            if isinstance(each, ast.Name):
                found.setdefault(each.id, []).append(value)
            elif isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
                found.setdefault(f".{each.attr}", []).append(value)
    return found
