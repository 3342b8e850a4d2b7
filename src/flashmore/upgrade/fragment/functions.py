"""The lines of one attention as two functions of their inputs, for a proof.

Everything that is not the attention's own arithmetic becomes an input: q, k, v, masks, biases, scales, sizes,
tests. The same expression becomes the same input before and after.
"""

import ast
import builtins

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.emit.emission import Emitter
from flashmore.upgrade.emit.words import Words, atom
from flashmore.upgrade.emit.writer import Emission
from flashmore.upgrade.fragment.inputs import Inputs
from flashmore.upgrade.patterns.masks import FINITE, INFINITE
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.rewrite import Rewriting
from flashmore.upgrade.site import Edit, Fragment
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.nodes import Blocks, operand
from flashmore.upgrade.source.sizes import pattern_axes
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


class _Cut:
    def __init__(self, found: Attention, text: Text, blocks: Blocks) -> None:
        self.found = found
        self.text = text
        self.blocks = blocks
        self.flow = found.flow
        self.inputs = Inputs(found, text)
        self.names = self.inputs.names
        self.only_old: dict[ast.AST, str] = {}

    def fragment(self) -> Fragment | None:
        self.kept = self._kept()
        self.inputs.products()
        for tree in (self.found.scores, self.found.weights):
            for term in tree.walk():
                self._cut(term)
        self._tests()
        self._libraries()
        old = self._render(Words(self.text, {**self.names, **self.only_old}), None)
        words = Words(self.text, self.names)
        emission = Emitter(self.found, words, self.blocks, extracted=True).emit()
        new = self._render(words, emission)
        free = sorted(self._free(old) | self._free(new))
        if not self.inputs.sizes(free):
            return None
        parameters = ", ".join(each.name for each in self.inputs.found)
        return Fragment(
            tuple(self.inputs.found), f"def old({parameters}):\n{old}", f"def new({parameters}):\n{new}"
        )

    def _kept(self) -> list[ast.stmt]:
        """The statements that make scores, weights or the output."""
        values = [self.found.final, *(value for value in self.found.chain if value.node is not None)]
        found = {value.statement for value in values}
        return [each for each in found if each is not None]

    def _cut(self, term: Term) -> None:
        if term.kind == "scale":
            if not term.value.inner or number(term.other) is None:
                self.inputs.scale(term)
        elif term.kind == "add":
            self._cut_add(term)
        elif term.kind == "fill":
            self._cut_fill(term)
        elif term.kind == "dropout":
            self.inputs.dropout(term)
        elif term.kind == "zeroed":
            self._cut_zeros(term)
        elif term.kind == "softmax":
            self._cut_softmax(term)
        elif term.value.op == "identity":
            self._cut_identity(term)
        elif term.kind == "reshape":
            self.inputs.view(term)
        elif term.kind == "cast":
            self._cut_cast(term)
        elif term.kind == "move" and term.value.op == "rearrange":
            self._cut_rearrange(term)

    def _cut_add(self, term: Term) -> None:
        assert term.other is not None
        if term.other.op == "element":
            statement = term.value.conditions[-1].statement if term.value.conditions else None
            if not isinstance(statement, ast.For):
                raise Refuse("a loop that cannot be cut out")
            one, two = (self.inputs.added(term, None, f"bias{index}") for index in (1, 2))
            self.names[statement.iter] = f"({one}, {two})"
            return
        if term.value.inner:
            self._helper(term)
            return
        node = operand(self.flow, term.value.node, term.other)
        if node is None:
            raise Refuse("a bias that cannot be cut out")
        self.names[node] = self.inputs.added(term, node, "bias")

    def _helper(self, term: Term) -> None:
        """What a helper adds and hides: its call becomes a sum, and a fill."""
        node = term.value.node
        assert node is not None
        if node in self.names:
            return
        tree = next(each for each in (self.found.scores, self.found.weights) if term in set(each.walk()))
        own = [each for each in tree.walk() if each.value.inner and each.value.node is node]
        below = {inner for each in own for inner in each.inner} - set(own)
        base = operand(self.flow, node, next(iter(below)).value) if len(below) == 1 else None
        kinds = [each.kind for each in own if each.kind not in ("phi", "same", "cast")]
        if base is None or not (set(kinds) <= {"add", "reshape"} or set(kinds) <= {"add", "fill"}):
            raise Refuse("a helper that cannot be cut out")
        made = self.text.of(base)
        if "reshape" in kinds:  # what it adds between its reshapes, as one bias of the scores' own shape
            whole = Term("add", term.value, (next(iter(below)),), term.other)
            own, made = [], f"({made} + {self.inputs.added(whole, None, 'bias')})"
        for each in reversed(own):
            if each.kind == "add":
                made = f"({made} + {self.inputs.added(each, None, 'bias')})"
            elif each.kind == "fill" and each.detail[0] == INFINITE:
                made = f'{atom(made)}.masked_fill({self.inputs.hidden(each)}, float("-inf"))'
            elif each.kind == "fill":
                raise Refuse("a helper that cannot be cut out")
        self.names[node] = made

    def _cut_fill(self, term: Term) -> None:
        if term.value.inner:
            self._helper(term)
            return
        self.inputs.mask(term)
        kind, fill = term.detail[:2]
        assert isinstance(fill, Value)
        node = operand(self.flow, term.value.node, fill)
        if "0/1" in term.detail:
            return
        if node is None and term.value.op == "setitem":
            statement = term.value.statement
            node = statement.value if isinstance(statement, ast.Assign) else None
        if node is not None and not isinstance(node, (ast.Constant, ast.UnaryOp)):
            self.names[node] = 'float("-inf")' if kind == INFINITE else "-1e9"
            if kind == FINITE and term.value.op == "where":
                self.names[node] = "torch.tensor(-1e9)"
        if kind == INFINITE and node is not None and isinstance(node, ast.UnaryOp):
            self.names[node] = 'float("-inf")'

    def _cut_identity(self, term: Term) -> None:
        """`nn.Identity` gives back what it gets."""
        node = term.value.node
        base = operand(self.flow, node, term.value.args[0])
        if base is None or node is None or term.value.inner:
            raise Refuse("an identity that cannot be cut out")
        self.names[node] = atom(Words(self.text, self.names).of(base))

    def _cut_zeros(self, term: Term) -> None:
        """The mask of the weights is that of the scores."""
        fill = next(each for each in self.found.scores.walk() if each.kind == "fill")
        assert fill.other is not None
        assert term.other is not None
        first = operand(self.flow, fill.value.node, fill.other)
        again = operand(self.flow, term.value.node, term.other)
        if first is None or again is None:
            raise Refuse("a mask that cannot be cut out")
        self.names[again] = atom(Words(self.text, self.names).of(first))

    def _cut_softmax(self, term: Term) -> None:
        node = term.value.node
        if not isinstance(node, ast.Call):
            raise Refuse("a softmax that cannot be cut out")
        dim = term.value.get(1, "dim")
        dim_value = dim.detail if dim is not None and dim.op == "const" else None
        if dim is not None and dim.op == "neg":
            dim_value = -int(str(dim.args[0].detail))
        own = self.flow.seen.get(node)
        if own is term.value and not term.value.inner and term.value.detail in (None, "method"):
            return
        scaled = self._scaled_in(term)
        if scaled is None or dim_value is None:
            raise Refuse("a softmax that cannot be cut out")
        made = f"F.softmax({scaled}, dim={dim_value})"
        for each in self.found.weights.walk():
            if each.kind == "dropout" and each.value.node is node and each.value.inner:
                self.inputs.dropout(each)
                made = self.inputs.dropped(each, made)
        self.only_old[node] = made

    def _scaled_in(self, term: Term) -> str | None:
        """What goes into the helper of a softmax, with the numbers that it multiplies there."""
        node, values = term.value.node, {each.value: each for each in self.found.scores.walk()}
        value, after = term.value.args[0], ""
        while (base := operand(self.flow, node, value)) is None:
            inner = values.get(value)
            if inner is None or not value.inner or value.node is not node or len(inner.inner) != 1:
                return None
            if inner.kind == "scale":
                after = f" {'/' if inner.detail[1] == 'div' else '*'} {number(inner.other)}{after}"
            elif inner.kind not in ("shift", "cast", "same"):
                return None
            value = inner.inner[0].value
        text = Words(self.text, self.names).of(base)
        return f"{atom(text)}{after}" if after else text

    def _cut_cast(self, term: Term) -> None:
        """`.to(x.dtype)`: of what is not here, q's dtype stands for it."""
        node = term.value.node
        if term.value.inner or not isinstance(node, ast.Call):
            return
        for argument in [*node.args, *(each.value for each in node.keywords)]:
            root = argument
            while isinstance(root, ast.Attribute):
                root = root.value
            value = self.flow.seen.get(root)
            elsewhere = value is not None and value.op != "global" and value not in self.found.chain
            if isinstance(root, ast.Name) and elsewhere and value is not None:
                dtype = root is argument and value.op == "attr:dtype"
                self.names[root] = f"{self.inputs.query}.dtype" if dtype else self.inputs.query

    def _cut_rearrange(self, term: Term) -> None:
        """einops' rearrange that only moves axes, as a permutation: a proof need not have einops."""
        node, pattern = term.value.node, term.value.args[1].detail
        base = operand(self.flow, node, term.value.args[0])
        if base is None or node is None or term.value.inner or not isinstance(pattern, str):
            raise Refuse("a rearrangement that cannot be cut out")
        left, right = (pattern_axes(side) for side in pattern.split("->"))
        order = ", ".join(str(left.index(each)) for each in right)
        weights = any(each is term for each in self.found.weights.walk())
        names = self.only_old if weights else self.names
        names[node] = f"{atom(Words(self.text, self.names).of(base))}.permute({order})"

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
            for node in ast.walk(statement):
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
                body.append(f"out = {_dedented(made)}")
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
        tree = ast.parse(f"def f():\n{body}")
        stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        known = {each.name for each in self.inputs.found}
        return loaded - stored - known - _FREE


def _dedented(text: str) -> str:
    """A statement's text whose inner lines need no indentation of their own."""
    if "\n" not in text and "\r" not in text:
        return text
    return ast.unparse(ast.parse(text.strip()))


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for each in lines for line in each.split("\n")]
