"""The lines of one attention as two functions of their inputs, for a proof.

Everything that is not the attention's own arithmetic becomes an input: q, k, v, masks, biases, scales, sizes,
tests. The same expression becomes the same input before and after.
"""

import ast
import builtins

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import step, walk
from flashmore.upgrade.emit.emission import Emitter
from flashmore.upgrade.emit.words import Words
from flashmore.upgrade.emit.writer import Emission
from flashmore.upgrade.fragment.cuts import Cuts
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.rewrite import Rewriting
from flashmore.upgrade.site import Edit, Fragment
from flashmore.upgrade.source.nodes import Blocks
from flashmore.upgrade.text import Text

_LIBRARIES = {
    "torch.nn.functional.": "F.", "torch.": "torch.", "math.": "math.", "numpy.": "np.", "einops.": "",
}  # fmt: skip
_FREE = {"torch", "F", "nn", "math", "np", "einops", "einsum", "rearrange", "repeat", *dir(builtins)}


def fragment(found: Attention, text: Text, blocks: Blocks) -> Fragment | None:
    """The two functions, None where the lines cannot be cut out of their surroundings."""
    try:
        return _Cut(found, text, blocks).fragment()
    except (Refuse, SyntaxError, StopIteration):
        return None


class _Cut(Cuts):
    def fragment(self) -> Fragment | None:
        self.kept = self._kept()
        self.inputs.products()
        for tree in (self.found.scores, self.found.weights):
            for term in tree.walk():
                self.cut(term)
        self._tests()
        self._libraries()
        old = self._render(Words(self.text, {**self.names, **self.only_old}), None)
        words = Words(self.text, self.names)
        emission = Emitter(self.found, words, self.blocks, extracted=True).emit()
        new = self._render(words, emission)
        half = emission.half.guard(lambda node: node in self.names)
        if half is not None:
            new = "".join((f"    if {half}:\n", *(f"    {line}\n" for line in new.splitlines()), old))
        if self._free(old) | self._free(new):
            return None
        self.inputs.take_apart()
        parameters = ", ".join(each.name for each in self.inputs.found)
        return Fragment(
            tuple(self.inputs.found), f"def old({parameters}):\n{old}", f"def new({parameters}):\n{new}"
        )

    def _kept(self) -> list[ast.stmt]:
        """The statements that make scores, weights or the output."""
        values = [self.found.final, *(value for value in self.found.chain if value.node is not None)]
        found = {value.statement for value in values}
        return [each for each in found if each is not None]

    def _tests(self) -> None:
        """Tests become flags, those of the guard constants."""
        guards = {condition.node: condition.holds for condition, _ in self.found.guards}
        for node, holds in guards.items():
            if node is not None:
                self.names[node] = str(holds)
        for statement in self.kept:
            for each in self.blocks.ancestors(statement):
                if isinstance(each, ast.If) and each is not statement:
                    self._flag(each.test, guards)
        for tree in (self.found.scores, self.found.weights):
            for term in tree.walk():
                if term.kind == "phi" and term.condition is not None and term.condition.node is not None:
                    self._flag(term.condition.node, guards)

    def _flag(self, test: ast.expr, guards: dict[ast.expr | None, bool]) -> None:
        while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            test = test.operand
        if test not in guards and test not in self.names:
            self.names[test] = self.inputs.flag(test)

    def _libraries(self) -> None:
        """`th.einsum` and `from torch import einsum` under the names that a proof knows."""
        for statement in self.kept:
            for node in walk(statement):
                value = self.flow.seen.get(node) if isinstance(node, ast.expr) else None
                if value is None or node in self.names:
                    continue
                if isinstance(node, ast.JoinedStr) and value.op == "const":
                    self.names[node] = repr(value.detail)
                if value.op != "global":
                    continue
                full = str(value.detail)
                for prefix, name in _LIBRARIES.items():
                    if full.startswith(prefix) and full[len(prefix) :].count(".") == 0:
                        self.names[node] = name + full[len(prefix) :]
                        break

    def _render(self, words: Words, emission: Emission | None) -> str:
        """The kept statements with the edits made, as a function's body."""
        rewriting = Rewriting(self.found, emission or Emission(), words, self.blocks)
        block, first, last = rewriting.region()
        edits = [*rewriting.edits()] if emission is not None else []
        final = self.found.final
        assert final.node is not None
        start, end = self.text.span(final.node)
        made = words.of(final.node)
        before = ""
        if emission is not None:
            covering = next(
                edit for edit in edits if edit.start <= start and end <= edit.end and edit.end > edit.start
            )
            made = covering.text
            lines = [e for s, e in emission.setup if s is final.statement]
            before = "\n".join(line for each in lines for line in each)
        body: list[str] = []
        for statement in block[first : last + 1]:
            if final.statement in (statement,):
                body += [before] if before else []
                broken = emission is None and ("\n" in made or "\r" in made)
                body.append(f"out = {_dedented(f'({made})' if broken else made)}")
                continue
            body += self._statement(statement, words, edits, emission)
        body.append("return out")
        return "".join(f"    {line}\n" for part in body for line in part.split("\n") if line.strip())

    def _statement(
        self, statement: ast.stmt, words: Words, edits: list[Edit], emission: Emission | None
    ) -> list[str]:
        """The text of one statement, without what is not kept."""
        if emission is not None and self._is_gone(statement, edits):
            return [line for s, lines in emission.setup if self._within(s, statement) for line in lines]
        if not any(self._within(each, statement) for each in self.kept):
            return []
        if isinstance(statement, ast.If):
            return self._if(statement, words, edits, emission)
        if isinstance(statement, (ast.For, ast.With)):
            start = self.text.span(statement)[0]
            head = self._edited(start, self.text.span(statement.body[0])[0], words, edits).rstrip()
            inner = [
                line for each in statement.body for line in self._statement(each, words, edits, emission)
            ]
            return [head, *_indented(inner)]
        if not isinstance(statement, (ast.Assign, ast.AugAssign, ast.Expr, ast.AnnAssign)):
            raise Refuse("a statement that cannot be cut out")
        start, end = self.text.span(statement)
        extra = [
            line for s, lines in (emission.setup if emission else []) if s is statement for line in lines
        ]
        return [*extra, _dedented(self._edited(start, end, words, edits))]

    def _if(self, statement: ast.If, words: Words, edits: list[Edit], emission: Emission | None) -> list[str]:
        parts: list[list[str]] = [
            [line for each in block for line in self._statement(each, words, edits, emission)]
            for block in (statement.body, statement.orelse)
        ]
        if not parts[0] and not parts[1]:
            return []
        test = words.of(statement.test)
        lines = [f"if {test}:", *_indented(parts[0] or ["pass"])]
        return [*lines, "else:", *_indented(parts[1])] if parts[1] else lines

    def _within(self, statement: ast.stmt, outer: ast.stmt) -> bool:
        return any(each is outer for each in self.blocks.ancestors(statement))

    def _is_gone(self, statement: ast.stmt, edits: list[Edit]) -> bool:
        start, end = self.text.span(statement)
        return any(edit.start <= start and end <= edit.end and edit.end > edit.start for edit in edits)

    def _edited(self, start: int, end: int, words: Words, edits: list[Edit]) -> str:
        inside = sorted(
            (edit for edit in edits if start <= edit.start and edit.end <= end),
            key=lambda edit: (edit.start, edit.end),
        )
        for first, last, _ in words.replaced(start, end):
            if any(
                first < edit.end and edit.start < last and not (edit.start <= first and last <= edit.end)
                for edit in inside
            ):
                raise Refuse("an edit inside of what was cut out")
        result, at = "", start
        for edit in inside:
            result += words.between(at, edit.start) + edit.text
            at = edit.end
        return result + words.between(at, end)

    def _free(self, body: str) -> set[str]:
        step(1 + len(body) // 10)
        tree = ast.parse(f"def f():\n{body}")
        stored = {n.id for n in walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        loaded = {n.id for n in walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        known = {each.name for each in self.inputs.found}
        return loaded - stored - known - _FREE


def _dedented(text: str) -> str:
    """A statement's text whose inner lines need no indentation of their own."""
    if "\n" not in text and "\r" not in text:
        return text
    return ast.unparse(ast.parse(text.strip()))


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for each in lines for line in each.split("\n")]
