"""From an emission to edits of the file: removed statements, new lines, a guard."""

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache

from flashmore.upgrade.axes import Refuse, UnknownAxis
from flashmore.upgrade.budget import walk
from flashmore.upgrade.checks.pure import unwrapped
from flashmore.upgrade.edits import edited
from flashmore.upgrade.emit.imports import import_edits
from flashmore.upgrade.emit.words import Words
from flashmore.upgrade.emit.writer import Emission
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.site import Edit
from flashmore.upgrade.source.attributes import Attribute
from flashmore.upgrade.source.functions import whole
from flashmore.upgrade.source.nodes import Blocks, Stability
from flashmore.upgrade.source.scopes import MODULE, Function, claimed_by, own_nodes
from flashmore.upgrade.source.scripted import compilers_of, unsupported
from flashmore.upgrade.text import Text, comments

_EMPTY = re.compile(r"\A(?:[ \t]*(?:\r\n|\r|\n))+")
_ANY_END = re.compile(r"\r\n|\r|\n")


class Rewriting:
    """The edits of one attention, in its file."""

    def __init__(self, found: Attention, emission: Emission, words: Words, blocks: Blocks) -> None:
        self.found = found
        self.emission = emission
        self.words = words
        self.text = words.text
        self.blocks = blocks
        self.guards = [condition for condition, _ in found.guards]
        self.is_guarded = bool(self.guards or found.asked or emission.asked or emission.half)

    def statements(self) -> list[ast.stmt]:
        """Every statement that the rewriting touches, and the condition's own."""
        found = [self.found.final.statement, *(product.value.statement for product in self.found.products)]
        found += [value.statement for value in self.found.chain if value.node is not None]
        found += self._decided_between()
        return [each for each in dict.fromkeys(found) if each is not None]

    @cached_property
    def ruled_out(self) -> set[int]:
        """The ids of all nodes in branches that run only where the old lines do."""
        found: set[int] = set()
        for node in ast.walk(self.found.flow.function):
            if isinstance(node, (ast.If, ast.IfExp)) and (live := self.found.live(node)) is not None:
                branch = node.orelse if live else node.body
                parts = branch if isinstance(branch, list) else [branch]
                found |= {id(inner) for part in parts for inner in ast.walk(part)}
        return found

    def _decided_between(self) -> list[ast.If]:
        """Each `if` between the two products whose branch the guards tell."""
        first, last = self.found.product.value.statement, self.found.final.statement
        assert first is not None
        assert last is not None
        around = set(self.blocks.ancestors(last))
        return [
            each
            for each in self.blocks.places
            if isinstance(each, ast.If)
            and each not in around
            and self.found.live(each) is not None
            and first.lineno <= (each.end_lineno or each.lineno)
            and each.lineno <= last.lineno
        ]

    def region(self) -> tuple[list[ast.stmt], int, int]:
        """The block and the places in it that the rewriting spans."""
        found = self.blocks.common(self.statements())
        if found is None:
            raise Refuse("the attention is spread over several functions")
        return found

    def same_function(self, changed: ast.Module) -> Function:
        """The function of the edited source, found by its place among all functions."""
        if self.found.flow.function.name == MODULE:
            return whole(changed)
        place = _functions(self.found.flow.module.tree).index(self.found.flow.function)
        return [each for each in walk(changed) if isinstance(each, Function)][place]

    def edits(self) -> tuple[Edit, ...]:
        """The edits without a guard."""
        result = list(self.emission.edits)
        for removal in self.removals():
            result = [each for each in result if not removal.start <= each.start <= each.end <= removal.end]
            result.append(removal)
        gone = self._gone()
        for inner, lines in self.emission.setup:
            statement = next((each for each in self.blocks.ancestors(inner) if each in gone), inner)
            start = self.text.whole_lines(statement)[0]
            require_own_lines(statement, self.text)
            indent = self.text.indent(statement)
            at = next((each for each in result if each.start <= start < max(each.end, each.start + 1)), None)
            block = "".join(f"{indent}{line}{self.text.newline}" for line in lines)
            before = at or Edit(start, start, "")
            result = [each for each in result if each is not at]
            result.append(Edit(before.start, before.end, block + before.text))
        for statement, left in self.undeleted.items():
            start, end = self.text.span(statement)
            result.append(Edit(start, end, f"del {', '.join(map(self.text.of, left))}"))
        return tuple(sorted(result, key=lambda edit: (edit.start, edit.end)))

    @cached_property
    def undeleted(self) -> dict[ast.Delete, list[ast.expr]]:
        """What is left of each later `del` of names that the rewriting no longer stores, and of others."""
        final = self.found.final.statement
        if self.is_guarded or final is None:
            return {}
        gone = {id(node) for each in self._gone() for node in ast.walk(each)}
        bound = [each for each in own_nodes(self.found.flow.function) if not _is_deleted(each)]
        names = {name for each in bound if id(each) in gone for name in claimed_by(each)}
        names -= {name for each in bound if id(each) not in gone for name in claimed_by(each)}
        found = {}
        for each in self.blocks.places:
            if isinstance(each, ast.Delete) and each.lineno > (final.end_lineno or final.lineno):
                left = [one for one in each.targets if not (isinstance(one, ast.Name) and one.id in names)]
                if left and len(left) < len(each.targets):
                    found[each] = left
        return found

    def _gone(self) -> list[ast.stmt]:
        """The outermost statements that fall away, guarded branches included."""
        gone = set(self.emission.removed)
        for decided in self._decided_between():
            if gone.issuperset(decided.body if self.found.live(decided) else decided.orelse):
                gone.add(decided)
        for statement in reversed(self.blocks.places):  # from the inside
            both = [*statement.body, *statement.orelse] if isinstance(statement, ast.If) else []
            both = both or [*unwrapped([statement], self.found.flow.module)]
            if gone.issuperset(both):
                gone.add(statement)
        return [each for each in gone if self.blocks.places[each].parent not in gone]

    def removals(self) -> list[Edit]:
        """The spans that fall away, without empty lines side by side or an `else` with nothing in it."""
        gone = self._gone()
        spans = []
        for statement in gone:
            require_own_lines(statement, self.text)
            spans.append((*self._lines_of(statement, set(gone)), self._stand_in(statement, set(gone))))
        merged: list[tuple[int, int, str]] = []
        for start, end, text in sorted(spans):
            before = merged[-1][1] if merged and not merged[-1][2] else start + 1
            if not text and before <= start and not self.text.source[before:start].strip():
                merged[-1] = (merged[-1][0], end, "")
            else:
                merged.append((start, end, text))
        return [self._removal(start, end, text) for start, end, text in merged]

    def _removal(self, start: int, end: int, text: str) -> Edit:
        """One span that falls away; its comments stay, unless an old branch keeps them."""
        kept = [] if self.is_guarded else comments(self.text.source[start:end])
        if kept:
            indent = self.text.indent_at(start)
            return Edit(start, end, "".join(f"{indent}{each}{self.text.newline}" for each in kept) + text)
        return Edit(start, end if text else self._after_blanks(start, end), text)

    def _lines_of(self, statement: ast.stmt, gone: set[ast.stmt]) -> tuple[int, int]:
        start, end = self.text.whole_lines(statement)
        place = self.blocks.places[statement]
        parent = place.parent
        if isinstance(parent, ast.If) and place.block is parent.orelse and gone.issuperset(place.block):
            is_elif = self.text.source[start:end].lstrip().startswith("elif")
            if statement is place.block[0] and not is_elif:
                start = self.text.whole_lines(parent.body[-1])[1]
        if self.is_guarded:  # the old branch keeps what is said of it
            block, first, _ = self.region()
            start = max(self.above(start), self.text.whole_lines(block[first])[0])
        return start, end

    def above(self, start: int) -> int:
        """Where the comments begin that stand directly above a line."""
        line = self.text.offset_line(start)
        while line > 0 and self.text.lines[line - 1].lstrip().startswith("#"):
            line -= 1
            start -= len(self.text.lines[line])
        return start

    def _stand_in(self, statement: ast.stmt, gone: set[ast.stmt]) -> str:
        """`pass`, where a block would be left empty."""
        place = self.blocks.places[statement]
        parent = place.parent
        if not gone.issuperset(place.block) or statement is not place.block[0]:
            return ""
        if isinstance(parent, ast.If) and place.block is parent.orelse:
            return ""
        return f"{self.text.indent(statement)}pass{self.text.newline}"

    def _after_blanks(self, start: int, end: int) -> int:
        """Where the empty lines end that follow a removal, if one stands before it too."""
        line = self.text.offset_line(start)
        before = self.text.lines[line - 1].strip() if line > 0 else ""
        if (before and not before.endswith(":")) or line == 0:
            return end
        at = self.text.offset_line(end)
        while at < len(self.text.lines) and not self.text.lines[at].strip():
            end += len(self.text.lines[at])
            at += 1
        return end

    def guarded(self) -> tuple[tuple[Edit, ...], str | None]:
        """The edits, and the guard around them: None where none is needed."""
        edits, extra = self.edits(), import_edits(self.emission.imported, self.found.flow.module, self.text)
        if not self.is_guarded:
            return self._supported((*extra, *edits)), None
        block, first, last = self.region()
        test = self._guard(block[first])
        statements = block[first : last + 1]
        inside = (
            each
            for each in self._taken_instead(block[last])
            if not any(one.start < each.end and each.start < one.end for one in edits)
        )
        made = guarded(statements, [*edits, *inside], test, self.text)
        if any(edit.start < made.start or edit.end > made.end for edit in edits):
            raise Refuse("other lines stand between those of the attention")
        return self._supported((*extra, made)), test

    def taken(self, node: ast.AST) -> ast.expr | None:
        """Of `a if test else b` whose answer the guards tell, the one that it is: a name or a constant."""
        if not isinstance(node, ast.IfExp) or (live := self.found.live(node)) is None:
            return None
        taken = node.body if live else node.orelse
        return taken if isinstance(taken, (ast.Name, ast.Constant)) else None

    def _taken_instead(self, statement: ast.stmt) -> Iterator[Edit]:
        for node in ast.walk(statement):
            if (taken := self.taken(node)) is not None:
                (start, end), (first, last) = self.text.span(node), self.text.span(taken)
                yield from (Edit(start, first, ""), Edit(last, end, ""))

    def _supported(self, edits: Sequence[Edit]) -> tuple[Edit, ...]:
        """The edits with the line ends of the file, whose compilers must support them."""
        new, old = "\n".join(each.text for each in edits), self.text.of(self.found.flow.function)
        for compiler in sorted(compilers_of(self.found.flow.own, self.found.flow.function)):
            if (what := unsupported(compiler, old, new)) is not None:
                raise Refuse(
                    f"{compiler} compiles this file, but does not support {what}", "do not script it"
                )
        line = self.text.newline
        return tuple(Edit(each.start, each.end, _ANY_END.sub(line, each.text)) for each in edits)

    def _guard(self, first: ast.stmt) -> str:
        stability = Stability(self.found.flow)
        tests: list[str] = []
        for condition, reason in self.found.guards:
            if condition.node is None or not stability.holds(condition.node, first):
                raise Refuse(f"on one branch {reason}, and the branch is not known in advance")
            text = self.words.condition(condition)
            if " or " in text or " if " in text:
                text = f"({text})"
            if text not in tests:
                tests.append(text)
        tests += self.of_ranks()
        for node, text in self.emission.asked:
            if not stability.holds(node, first):
                raise Refuse("the dropout changes before the values are multiplied")
            tests.append(text)
        if self.emission.half is not None:
            tests.append(self.emission.half.guard(lambda node: stability.holds(node, first)))
        return " and ".join(tests)

    def of_ranks(self) -> list[str]:
        """What a guard asks of tensors whose axes are counted from the front."""
        block, place, _ = self.region()
        flow = self.found.flow
        names = {value: name for name, value in flow.before.get(block[place], {}).items()}
        for each in (each for chain in self.found.asked for each in chain if each.op == "selfattr"):
            if isinstance(each.detail, Attribute) and each.detail.path not in flow.stored:
                names[each] = each.detail.path
        named = [[names[each] for each in chain if each in names] for chain in self.found.asked]
        if not all(named):
            raise UnknownAxis(-1)
        asked = " == ".join([*dict.fromkeys(f"{each[0]}.dim()" for each in named), str(self.found.rank)])
        return [asked] if named else []


def require_own_lines(statement: ast.stmt, text: Text) -> None:
    """Refuse a statement that shares a line with another one."""
    start, end = text.span(statement)
    first, last = text.whole_lines(statement)
    after = text.source[end:last].strip()
    if text.source[first:start].strip() or (after and not after.startswith("#")):
        raise Refuse("several statements share a line", "put each on its own line")


def _is_deleted(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Del)


def guarded(statements: Sequence[ast.stmt], edits: Sequence[Edit], test: str, text: Text) -> Edit:
    """Statements of one block with edits made where a test holds, and as they are where it does not."""
    for each in statements:
        require_own_lines(each, text)
    if has_long_string(statements, text):
        raise Refuse("a guard would have to indent a multi-line string", "assign it to a name above")
    start, end = text.whole_lines(statements[0])[0], text.whole_lines(statements[-1])[1]
    new, old = _EMPTY.sub("", edited(text.source[:end], edits)[start:]), text.source[start:end]
    new, old = (each if not each or each[-1] in "\r\n" else each + text.newline for each in (new, old))
    indent, line = text.indent(statements[0]), text.newline
    return Edit(start, end, f"{indent}if {test}:{line}{_deeper(new)}{indent}else:{line}{_deeper(old)}")


def _deeper(text: str) -> str:
    """Lines indented once more."""
    return "".join(f"    {line}" if line.strip() else line for line in Text(text).lines)


def has_long_string(statements: Sequence[ast.stmt], text: Text) -> bool:
    """Whether a string has lines of its own, which indenting would change."""
    notes = {
        id(node.value) for each in statements for node in walk(each) if isinstance(node, ast.Expr)
    }  # a text that nobody reads may be indented
    return any(
        isinstance(node, (ast.Constant, ast.JoinedStr))
        and id(node) not in notes
        and node.lineno != node.end_lineno
        and any(mark in text.of(node) for mark in ('"' * 3, "'" * 3, "\\\n", "\\\r"))
        for statement in statements
        for node in walk(statement)
    )


@lru_cache(maxsize=1)  # of the file that is searched, not once for each of its places
def _functions(tree: ast.Module) -> list[Function]:
    return [each for each in ast.walk(tree) if isinstance(each, Function)]
