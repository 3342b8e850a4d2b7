"""The lines of one attention as two functions of their inputs, for a test.

Both are read from the file: from its text as it is, and from its text with the edits made. Everything that
is not the attention's own arithmetic becomes an input: q, k, v, masks, biases, scales, sizes, tests. The same
expression becomes the same input before and after, where nothing in between gives its names another value.
Statements that are not the attention's must be the same ones before and after, in the same order; they are
left out of both. Those that have no effect may be gone: the names that they bind are checked elsewhere.
"""

import ast
import builtins
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import walk
from flashmore.upgrade.checks.effects import effects
from flashmore.upgrade.checks.pure import unwrapped
from flashmore.upgrade.fragment.cuts import Cuts
from flashmore.upgrade.fragment.followed import of_library
from flashmore.upgrade.fragment.region import parsed, region
from flashmore.upgrade.rewrite import Rewriting
from flashmore.upgrade.site import Fragment, Input
from flashmore.upgrade.source.escape import stripped
from flashmore.upgrade.source.scopes import claimed_by, copied, heads, is_note

FREE = {"torch", "F", "nn", "math", "np", "einops", "einsum", "rearrange", "repeat", *dir(builtins)}
"""Names that a fragment need not be given."""

Version = tuple[tuple[int, ...], frozenset[str]]
"""What has been done to the names of an expression: by which of the statements that are left out, and to
which of them by the attention's own statements."""


def fragment(rewriting: Rewriting, changed: str) -> Fragment | None:
    """The two functions; None where the lines cannot be cut out of their surroundings.

    Args:
        rewriting: the rewriting, which tells the inputs.
        changed: the source with its edits made, a guard included.
    """
    try:
        return _Cut(rewriting, changed).fragment()
    except (Refuse, SyntaxError, StopIteration):
        return None


@dataclass
class _Seen:
    """What has happened so far on one side."""

    left_out: list[tuple[set[str], tuple[str, ...]]] = field(default_factory=list)
    """The names that each statement that is left out stores to, and what it stands in."""
    stored: set[str] = field(default_factory=set)

    def version(self, node: ast.AST) -> Version:
        names, said = _names(node), ast.dump(node)
        by = tuple(
            index
            for index, (stores, within) in enumerate(self.left_out)
            if stores & names and said not in within  # `if exists(mask): mask = mask[:, None]`
        )
        return by, frozenset(self.stored & names)


class _Cut(Cuts):
    def __init__(self, rewriting: Rewriting, changed: str) -> None:
        super().__init__(rewriting.found, rewriting.text, rewriting.blocks)
        self.rewriting = rewriting
        self.changed = changed
        self.seen = _Seen()
        self.texts: dict[tuple[str, Version], str] = {}
        """What stands for an expression: its syntax and the version of its names decide."""
        self.live: dict[tuple[str, Version], bool] = {}
        """The guards that a test may be, and which branch they leave."""
        self.others: list[tuple[tuple[str, ...], ast.stmt]] = []
        """The statements that are left out: their syntax below that of those that they stand in."""
        self.theirs: set[str] = set()
        """The names of the function that the attention's own lines do not store to."""
        self.names_of: Callable[[ast.AST], str | None] = self._old_text

    def fragment(self) -> Fragment | None:
        block, first, last = self.rewriting.region()
        final = self.found.final
        before = self._until(block[first : last + 1], final.node)
        if not isinstance(final.node, ast.expr) or before[-1] is not final.statement:
            return None
        kept = {value.statement for value in (final, *self.found.chain) if value.node is not None}
        self.kept = [  # flags are numbered in this order
            each for each in self.blocks.places if each in kept or self._renames(each)
        ]
        self.contexts = [
            item.context_expr
            for each in dict.fromkeys(outer for one in self.kept for outer in self.blocks.ancestors(one))
            for item in (each.items if isinstance(each, ast.With) else ())
        ]
        self._inputs()
        old = self._side(before[:-1], before[-1], final.node)
        changed = region(self.rewriting, self.changed)
        self.theirs = self.inputs.taken - self.seen.stored
        self.seen, self.names_of = _Seen(), self._new_text
        test = self._replaced(changed.of_dtypes) if changed.of_dtypes is not None else None
        after = self._until(changed.statements, changed.out)
        new = self._side(after[:-1], after[-1], changed.out)
        self._lose(len(self.others))
        if test is not None:
            new = [ast.If(test, new, old)]
        if self._free(old) | self._free(new):
            return None
        self.inputs.take_apart()
        return Fragment(tuple(self.inputs.found), self._function("old", old), self._function("new", new))

    def _until(self, statements: list[ast.stmt], node: ast.AST | None) -> list[ast.stmt]:
        """Statements up to that of a node, without those of profilers around them."""
        found = [*unwrapped(statements, self.flow.module)]
        last = (at for at, each in enumerate(found) if any(inner is node for inner in walk(each)))
        return found[: next(last) + 1]

    def _renames(self, statement: ast.stmt) -> bool:
        """Whether a statement only gives scores or weights another name."""
        match statement:
            case ast.Assign(targets=[ast.Name()], value=ast.Name() as value):
                return self.flow.seen.get(value) in self.found.chain
        return False

    def _inputs(self) -> None:
        """Everything that becomes an input, and the texts that stand for it."""
        self.inputs.products()
        for tree in (self.found.scores, self.found.weights):
            for term in tree.walk():
                self.cut(term)
        self._tests()
        self._libraries()

    def _tests(self) -> None:
        """Tests become flags, those of the guard constants."""
        self.names |= {node: str(holds) for node, holds in self.found.decided.items()}
        for statement in self.kept:
            for each in self.blocks.ancestors(statement):
                if isinstance(each, ast.If) and each is not statement:
                    self._flag(each.test)
        for made in self.contexts:
            for given in getattr(made, "keywords", ()):  # autocast(enabled=not self.full)
                if given.arg == "enabled" and not isinstance(given.value, ast.Constant):
                    self._flag(given.value)
        for tree in (self.found.scores, self.found.weights):
            for term in tree.walk():
                if term.kind == "phi" and term.condition is not None and term.condition.node is not None:
                    self._flag(term.condition.node)

    def _flag(self, test: ast.expr) -> None:
        test, _ = stripped(test)
        if test in self.names:
            return
        numbers = {each.name for each in self.inputs.found if each.role == "number"}
        same = (node for node in self.names if ast.dump(node) == ast.dump(test))  # `if p: x = dropout(x, p)`
        found = next((self.names[node] for node in same if self.names[node] in numbers), None)
        self.names[test] = found or self.inputs.flag(test)

    def _libraries(self) -> None:
        """`th.einsum` and `from torch import einsum` under the names that a test knows."""
        for part in (*self.kept, *self.contexts):
            for node in walk(part):
                value = self.flow.seen.get(node) if isinstance(node, ast.expr) else None
                if value is None or node in self.names:
                    continue
                if isinstance(node, ast.JoinedStr) and value.op == "const":
                    self.names[node] = repr(value.detail)
                if (written := self.flow.literals.get(value)) is not None:
                    self.names[node] = f"({ast.unparse(written)})"
                if value.op == "global" and (name := of_library(str(value.detail))) is not None:
                    self.names[node] = name

    def _side(self, body: list[ast.stmt], last: ast.stmt, out: ast.expr) -> list[ast.stmt]:
        """The statements of one side, and what it returns."""
        made = self._statements(body)
        self._record(last)
        return [*made, ast.Return(self._replaced(out))]

    def _statements(self, body: Iterable[ast.stmt], within: tuple[str, ...] = ()) -> list[ast.stmt]:
        made: list[ast.stmt] = []
        for statement in (each for each in unwrapped(body, self.flow.module) if not is_note(each)):
            self._record(statement)  # before what stands in it, which has a version of its own
            if isinstance(statement, ast.If) and (live := self._live(statement.test)) is not None:
                made += self._statements(statement.body if live else statement.orelse, within)
                continue
            if self._is_left_out(statement, within) or isinstance(statement, ast.Pass):
                continue
            match statement:
                case ast.If(test=test, body=one, orelse=two):
                    asked = self._replaced(test)
                    below = (*within, ast.dump(test))
                    first, second = self._statements(one, below), self._statements(two, (*below, "else"))
                    if isinstance(one[-1], ast.Raise):
                        made += second
                    elif first or second:
                        made.append(ast.If(asked, first or [ast.Pass()], second))
                case ast.For(target=target, iter=source, body=inner, orelse=[]):
                    given = self._replaced(source)
                    below = (*within, ast.dump(target), ast.dump(source))
                    self.seen.stored |= _stored(target)
                    made.append(ast.For(target, given, self._statements(inner, below) or [ast.Pass()], []))
                case ast.With(items=items, body=inner):
                    below = (*within, *map(ast.dump, items))
                    entered = [self._replaced(each) for each in items]
                    made.append(ast.With(entered, self._statements(inner, below) or [ast.Pass()]))
                case ast.Assign() | ast.AugAssign() | ast.AnnAssign() | ast.Expr():
                    if not self._is_old and _stored(statement) & self.theirs:
                        raise Refuse("a statement would be added")
                    made.append(self._replaced(statement))
                    self.seen.stored |= _stored(statement)
                case _:
                    raise Refuse("a statement that cannot be cut out")
        return made

    def _is_left_out(self, statement: ast.stmt, within: tuple[str, ...]) -> bool:
        """Whether a statement is none of the attention's: after the edits, one of those of before."""
        said = (*within, ast.dump(statement))
        if self._is_old:
            if any(each is inner for each in self.kept for inner in walk(statement)):
                return False
            self.others.append((said, statement))
        else:
            place = next((index for index, each in enumerate(self.others) if each[0] == said), None)
            if place is None:
                return False
            self._lose(place)
            del self.others[0]
        self.seen.left_out.append((_stored(statement), within))
        return True

    def _lose(self, count: int) -> None:
        """The next statements of before are gone: they must have had no effect."""
        module = self.flow.module
        if any(next(effects(each, module), None) is not None for _, each in self.others[:count]):
            raise Refuse("a statement with an effect would be lost, or move")
        self.seen.left_out += [(set(), ())] * count
        del self.others[:count]

    @property
    def _is_old(self) -> bool:
        return self.names_of == self._old_text

    def _live(self, test: ast.expr) -> bool | None:
        """Which branch runs where the guards hold; None where they do not tell."""
        test, negated = stripped(test)
        held = self.live.get((ast.dump(test), self.seen.version(test)))
        return None if held is None else held != negated

    def _record(self, statement: ast.stmt) -> None:
        """Note what stands for the expressions of a statement of the old side, for the other side."""
        if not self._is_old:
            return
        for node in heads(statement):
            key = (ast.dump(node), self.seen.version(node)) if node in self.names else None
            if key is not None and self.texts.setdefault(key, self.names[node]) != self.names[node]:
                raise Refuse("the same expression has several meanings")
            if key is not None and node in self.found.decided:
                self.live[key] = self.found.decided[node]

    def _old_text(self, node: ast.AST) -> str | None:
        return self.only_old.get(node) or self.names.get(node)

    def _new_text(self, node: ast.AST) -> str | None:
        if not isinstance(node, ast.expr):
            return None
        known = self.texts.get((ast.dump(node), self.seen.version(node)))
        if known is None and isinstance(node, (ast.Name, ast.Attribute)):
            return of_library(self.flow.module.qualified(node))
        return known

    def _replaced(self, node: Any) -> Any:
        """A copy with the inputs in the place of what they stand for."""
        return copied(node, self._stand_in)

    def _stand_in(self, node: ast.AST) -> ast.AST | None:
        if isinstance(node, ast.AnnAssign) and node.value is not None and node.simple:
            return ast.Assign([self._replaced(node.target)], self._replaced(node.value))  # types are not read
        text = self.names_of(node)
        made = None if text is None else parsed(text)
        if isinstance(made, ast.Name) and isinstance(getattr(node, "ctx", None), ast.Store):
            made.ctx = ast.Store()
        return made

    def _function(self, name: str, body: list[ast.stmt]) -> str:
        return function(name, self.inputs.found, [*self.helpers.called_by(body), *body])

    def _free(self, body: list[ast.stmt]) -> set[str]:
        known = {*(each.name for each in self.inputs.found), *self.helpers.names.values()}
        return names_in(body, ast.Load) - names_in(body, ast.Store) - known - FREE


def function(name: str, inputs: Iterable[Input], body: list[ast.stmt]) -> str:
    """The source of a function of some inputs."""
    lines = ast.unparse(ast.fix_missing_locations(ast.Module(body, []))).split("\n")
    given = ", ".join(each.name for each in inputs)
    return "\n".join([f"def {name}({given}):", *(f"    {line}" for line in lines), ""])


def names_in(body: Iterable[ast.stmt], how: type[ast.expr_context]) -> set[str]:
    """The names that some statements load, or store."""
    names = (node for each in body for node in walk(each) if isinstance(node, ast.Name))
    return {each.id for each in names if isinstance(each.ctx, how)}


def _names(node: ast.AST) -> set[str]:
    """The names that an expression reads, attributes with a dot."""
    return {
        each.id if isinstance(each, ast.Name) else f".{each.attr}"
        for each in walk(node)
        if isinstance(each, (ast.Name, ast.Attribute))
    }


def _stored(node: ast.AST) -> set[str]:
    """The names that a statement gives a value, or changes an item of; attributes with a dot."""
    found = {name for each in walk(node) for name in claimed_by(each)}
    for each in walk(node):
        if isinstance(each, ast.Attribute) and not isinstance(each.ctx, ast.Load):
            found.add(f".{each.attr}")
        elif isinstance(each, ast.Subscript) and not isinstance(each.ctx, ast.Load):
            found |= _names(each.value)
    return found
