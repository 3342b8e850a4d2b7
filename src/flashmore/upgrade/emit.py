"""The edits that turn one attention into a call: arguments of their own where they are simple, else a replay.

A replay leaves every statement about the scores as it is, and only lets it work on zeros in the scores' place:
`q[..., :0] @ k.transpose(-2, -1)[..., :0, :]` sums over no channels, so it has the scores' shape, dtype and device
and costs nothing to multiply. Scaling, adding and hiding are affine, so what they make of zeros is exactly the
bias that SDPA adds to the scaled product.
"""

import ast
import keyword
import re
from dataclasses import dataclass, field

from flashmore.upgrade.call import SDPA, Pieces, Scale, number
from flashmore.upgrade.graph import Value
from flashmore.upgrade.hiding import Keep, Step, from_caller, is_causal, keep, kinds, steps, test
from flashmore.upgrade.nodes import Blocks, children, operand
from flashmore.upgrade.patterns.masks import FINITE
from flashmore.upgrade.patterns.products import MORE, Product
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.plan import Attention, Refuse
from flashmore.upgrade.site import Edit
from flashmore.upgrade.words import Words, atom, call, factor, fresh, is_atom, reordered


@dataclass
class Emission:
    """Edits of one function, and what they assume."""

    edits: list[Edit] = field(default_factory=list)
    removed: set[ast.stmt] = field(default_factory=set)
    setup: list[tuple[ast.stmt, list[str]]] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    rule: str = ""
    call: str = ""
    imported: str | None = None


class Emitter:
    """Writes the edits of one attention.

    Args:
        found: the attention.
        words: the texts.
        blocks: where statements stand.
        extracted: whether it is written for a proof, where torch has its own names.
    """

    def __init__(self, found: Attention, words: Words, blocks: Blocks, extracted: bool = False) -> None:
        self.extracted = extracted
        self.found = found
        self.words = words
        self.text = words.text
        self.blocks = blocks
        self.pieces = Pieces(found, words)
        self.flow = found.flow
        self.result = Emission()
        self.donors: list[ast.Name] = []
        self.taken = {each.id for each in ast.walk(self.flow.function) if isinstance(each, ast.Name)}
        self.taken |= {each.arg for each in ast.walk(self.flow.function) if isinstance(each, ast.arg)}

    def emit(self) -> Emission:
        """The edits.

        Raises:
            Refuse: there is no safe way to write it.
        """
        simple = steps(self.found.scores)
        if simple is not None and (not simple or self.found.layout == (*self.found.batch, "l", "s")):
            try:
                return self._simple(simple)
            except Refuse as refusal:
                if not simple:
                    raise
                first = refusal
                self.result = Emission()
                self.pieces = Pieces(self.found, self.words)
        else:
            first = None
        try:
            return self._replay()
        except Refuse:
            if first is not None:
                raise first from None
            raise

    # arguments of their own

    def _simple(self, found: list[Step]) -> Emission:
        scale = self.pieces.scale()
        q = self._query(scale)
        arguments: list[str] = []
        fills = [each for each in found if each.term.kind == "fill"]
        adds = [each for each in found if each.term.kind == "add"]
        if fills and adds or len(adds) > 1:
            raise Refuse("masks and biases together")
        if len(fills) == 1 and is_causal(self.found, fills[0]):
            arguments.append("is_causal=True")
            self.result.rule = "causal"
        elif fills:
            q, mask = self._hidden(fills, q)
            arguments.append(f"attn_mask={mask}")
            self.result.rule = "boolean-mask"
        elif adds:
            arguments.append(f"attn_mask={self._added(adds[0])}")
            self.result.rule = "additive-mask"
        else:
            self.result.rule = "plain"
        self._remove_chain()
        self._write_call(q, arguments, scale)
        self._check_needed()
        return self.result

    def _check_needed(self) -> None:
        """What falls away must not make a name that the call reads."""
        made = {
            self.flow.after[each].get(target.id)
            for each in self.result.removed
            for target in getattr(each, "targets", [])
            if isinstance(target, ast.Name)
        }
        if any(self.flow.seen.get(name) in made for node in self.pieces.emitted for name in _names(node)):
            raise Refuse("a statement makes both the scores and what else is needed")

    def _query(self, scale: Scale) -> str:
        q = self.pieces.tensor(self.found.q, self.found.product.value, "ld")
        for how, text in scale.learned:
            q = f"{factor(q)} {'*' if how == 'mul' else '/'} {factor(text)}"
            self.result.assumptions.append(f"{text} is a number, or has one value a head at most")
        return q

    def _hidden(self, fills: list[Step], q: str) -> tuple[str, str]:
        keeps = [keep(each, self.pieces) for each in fills]
        tests = [test(each, self.pieces) for each in fills]
        if len(set(tests)) != 1:
            return self._several(list(zip(keeps, tests, strict=True)), kinds(fills), q)
        when = tests[0]
        kept = keeps[0].text if len(keeps) == 1 else " & ".join(f"({each.text})" for each in keeps)
        found = kinds(fills)
        if len(found) > 1:
            raise Refuse("some masks are filled with -inf and some with a finite number")
        value = fills[0].term.other
        assert value is not None
        if found == {FINITE}:
            return self._rows(kept, when, q, value)
        self.result.assumptions.append("rows whose keys are all hidden are NaN today, and may become zeros")
        kept = self._lifted_mask(kept, value)
        return q, kept if when is None else f"{kept} if {when} else None"

    def _several(self, masks: list[tuple[Keep, str | None]], found: set[str], q: str) -> tuple[str, str]:
        """Masks under different tests, one after the other into one."""
        if len(found) > 1 or len(self.found.batch) == 1 and MORE not in self.found.batch:
            raise Refuse("masks under different conditions")
        mask, row, query = (fresh(each, self.taken) for each in ("keep", "some", "query"))
        always = [each.text for each, when in masks if when is None]
        start = always[0] if len(always) == 1 else " & ".join(f"({each})" for each in always)
        lines = [f"{mask} = {start or None}"]
        first = not always
        for each, when in masks:
            if when is not None:
                text = each.text if each.text.isidentifier() else f"({each.text})"
                joined = f"{mask} & {text}" if always else f"{text} if {mask} is None else {mask} & {text}"
                lines += [f"if {when}:", f"    {mask} = {each.text if first else joined}"]
                first = False
        if found == {FINITE}:
            rows = [
                f"{row} = {mask}.any(dim=-1, keepdim=True)  # a row that keeps no key is even",
                f"{query} = {atom(q)}.masked_fill(~{row}, 0)",
                f"{mask} = {mask} | ~{row}",
            ]
            lines += rows if always else [f"{query} = {q}", f"if {mask} is not None:", *("    " + e for e in rows)]
            q = query
        else:
            self.result.assumptions.append("rows whose keys are all hidden are NaN today, and may become zeros")
        self.result.setup.append((self.pieces.at, lines))
        return q, mask

    def _lifted_mask(self, text: str, value: Value) -> str:
        """A mask of three dimensions, as wide as the lifted tensors: the kernels take two or four."""
        if self.found.shapes.rank(value) == 3 and len(self.found.batch) == 1 and MORE not in self.found.batch:
            return f"{atom(text)}.unsqueeze(0)"
        return text

    def _rows(self, kept: str, when: str | None, q: str, value: Value) -> tuple[str, str]:
        """A finite fill: a row that keeps no key attends to all keys alike, whatever q and k are."""
        mask, row, query = (fresh(each, self.taken) for each in ("keep", "some", "query"))
        lines = [f"{mask} = {kept}", f"{row} = {mask}.any(dim=-1, keepdim=True)  # a row that keeps no key is even"]
        lines += [f"{query} = {atom(q)}.masked_fill(~{row}, 0)", f"{mask} = {self._lifted_mask(f'{mask} | ~{row}', value)}"]
        if when is not None:
            lines = [f"{query}, {mask} = {q}, None", f"if {when}:", *("    " + each for each in lines)]
        self.result.setup.append((self.pieces.at, lines))
        return query, mask

    def _added(self, step: Step) -> str:
        term = step.term
        assert term.other is not None
        node = operand(self.flow, term.value.node, term.other)
        if node is None or not self.pieces.stability.holds(node, self.pieces.at, step.condition):
            raise Refuse("a bias changes its meaning before the values are multiplied")
        self.pieces.emitted.append(node)
        text = self.words.flat(node)
        if term.detail == ("-",):
            text = f"-{atom(text)}"
        when = test(step, self.pieces)
        clamped = self._lifted_mask(self.clamped(text, term.other), term.other)
        if when is None:
            return clamped
        return f"{clamped} if {when} else None"

    def clamped(self, text: str, value: Value) -> str:
        """A caller's mask, kept finite: under autocast SDPA would turn float32's lowest number into -inf."""
        if not from_caller(value):
            return text
        torch = "torch" if self.extracted else self.flow.module.spelling("torch")
        lowest = f"{torch}.finfo({torch}.bfloat16).min" if torch else "-3.3895313892515355e38"
        return f"{atom(text)}.clamp(min={lowest})"

    # the statements that fall away

    def _remove_chain(self) -> None:
        chain = self.found.chain
        gone: set[ast.stmt] = set()
        for value in chain:
            statement = value.statement
            if value.inner or value.node is None or statement is self.pieces.at or value.op in ("phi", "loop", "carried"):
                continue
            if statement is None or not self._is_all_chain(statement, chain):
                raise Refuse("a statement about the scores does something else too")
            gone.add(statement)
        for value in chain:
            if value.inner and value.op not in ("phi", "loop", "carried") and value.statement is not self.pieces.at:
                if value.statement is None or not self._is_all_chain(value.statement, chain):
                    raise Refuse("a statement about the scores does something else too")
                gone.add(value.statement)
        self._remove_needed(chain, gone)
        self.result.removed = gone
        if self.donors:
            self._keep_as_donor(gone)

    def _keep_as_donor(self, gone: set[ast.stmt]) -> None:
        """The scores' name stays, as zeros of their shape and dtype, where only these are asked for."""
        statement = self.found.product.value.statement
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        names = {each.id for each in self.donors}
        made = {term.kind for term in (*self.found.scores.walk(), *self.found.weights.walk())
                if term.value.statement is statement}  # fmt: skip
        if not isinstance(target, ast.Name) or names != {target.id} or not made <= {"product", "scale", "cast"}:
            raise Refuse("the scores' shape or dtype is asked for elsewhere")
        gone.discard(statement)  # type: ignore[arg-type]
        self._zero_product()

    def _is_all_chain(self, statement: ast.stmt, chain: set[Value]) -> bool:
        match statement:
            case ast.Assign(targets=[ast.Name()], value=value) | ast.AnnAssign(target=ast.Name(), value=ast.expr() as value):
                return self.flow.seen.get(value) in chain
            case ast.AugAssign(target=ast.Name()):
                return True
            case ast.Expr(value=value):
                return self.flow.seen.get(value) in chain
        return False

    def _remove_needed(self, chain: set[Value], gone: set[ast.stmt]) -> None:
        """What only asked the scores for their shape or dtype goes too, if nothing else needs it."""
        for value in chain:
            for user in value.users:
                if user in chain or user is self.found.final or user.inner:
                    continue
                statement = user.statement
                if statement is None or statement in gone or statement is self.pieces.at or user.op in ("phi", "tuple"):
                    continue
                if any(each in self._guarded() for each in self.blocks.ancestors(statement)):
                    continue
                if self._only_needed_by(statement, gone):
                    gone.add(statement)
                    continue
                asked = children(user.node)[:1] if user.node is not None else []
                if not asked or not isinstance(asked[0], ast.Name):
                    raise Refuse("the scores' shape or dtype is asked for elsewhere")
                self.donors.append(asked[0])

    def _guarded(self) -> set[ast.stmt]:
        return {guard.statement for guard, _ in self.found.guards if isinstance(guard.statement, ast.If)}

    def _only_needed_by(self, statement: ast.stmt, gone: set[ast.stmt]) -> bool:
        match statement:
            case ast.Assign(targets=[ast.Name()], value=value):
                made = self.flow.seen.get(value)
                return made is not None and all(user.statement in gone for user in made.users)
            case ast.Assert():
                return True
        return False

    # the scores' statements on zeros

    def _replay(self) -> Emission:
        self.result.rule = "bias"
        scale = self.pieces.scale()
        q = self._query(scale)
        self._check_replay()
        q = self._rows_of_replay(q)
        self._clamp_added()
        self._zero_product()
        removed = self._unwrap()
        weights = operand(self.flow, self.found.final.node, self._weights_value())
        if weights is None:
            raise Refuse("the weights cannot be told apart in the source")
        bias = self._with_edits(weights, removed)
        bias = reordered(bias, self.found.layout, (*self.found.batch, "l", "s"))
        if MORE not in self.found.batch and len(self.found.batch) < 2:
            bias = self.pieces.lifted(bias)
        self._write_call(q, [f"attn_mask={bias}"], scale)
        return self.result

    def _weights_value(self) -> Value:
        term = self.found.weights
        return term.value

    def _check_replay(self) -> None:
        terms = list(self.found.scores.walk())
        fills = [term for term in terms if term.kind == "fill" and term.detail[0] == FINITE]
        adds = [term for term in terms if term.kind == "add" and term.other is not None]
        if fills and any(from_caller(each.other) for each in adds if each.other is not None):
            raise Refuse(
                "a finite fill and a caller's additive mask together: rows that keep no key would change",
                "make one boolean mask of both",
            )
        by_call: dict[ast.AST, set[str]] = {}
        for term in (*terms, *self.found.weights.walk()):
            if term.value.inner and term.value.node is not None and term.kind not in ("phi", "same"):
                by_call.setdefault(term.value.node, set()).add(term.kind)
        for found in by_call.values():
            if found & {"softmax", "dropout", "product"} and found & {"scale", "add", "fill", "reshape", "move"}:
                raise Refuse("one helper hides keys and takes the softmax", "write the softmax into this function")

    def _rows_of_replay(self, q: str) -> str:
        """Finite fills: rows that keep no key must not depend on q."""
        fills = [
            term for term in self.found.scores.walk() if term.kind == "fill" and term.detail[0] == FINITE
        ]
        if not fills:
            return q
        simple = _conditions(self.found.scores)
        if len(fills) > 1 or simple is None or self.found.layout != (*self.found.batch, "l", "s"):
            raise Refuse("finite fills in several places: rows that keep no key would change", "fill with -inf")
        term = fills[0]
        if term.value.inner:
            raise Refuse("a finite fill inside a helper: rows that keep no key would change", "fill with -inf")
        step = Step(term, simple.get(term))
        found: Keep = keep(step, self.pieces)
        when = test(step, self.pieces)
        query = fresh("query", self.taken)
        hidden = found.hidden
        line = f"{query} = {atom(q)}.masked_fill({atom(hidden)}.all(dim=-1, keepdim=True), 0)"
        lines = [f"{line}  # a row that keeps no key is even"]
        if when is not None:
            lines = [f"{query} = {q}", f"if {when}:", f"    {lines[0]}"]
        self.result.setup.append((self.pieces.at, lines))
        return query

    def _clamp_added(self) -> None:
        """What a caller adds stays finite, each by itself: two hidden keys may well add up to -inf."""
        for term in self.found.scores.walk():
            if term.kind != "add" or term.other is None or term.value.inner or not from_caller(term.other):
                continue
            node = operand(self.flow, term.value.node, term.other)
            if node is None:
                raise Refuse("a bias cannot be told apart in the source")
            text = self.words.of(node)
            self._replace(node, self.clamped(text, term.other))

    def _zero_product(self) -> None:
        for product in self.found.products:
            self._zero(product)

    def _zero(self, product: Product) -> None:
        node = product.value.node
        letter = next(iter(product.contracted))
        for side in (0, 1):
            found = operand(self.flow, node, product.operands[side])
            if found is None:
                raise Refuse("the product's operands cannot be told apart in the source")
            letters = product.letters[side]
            behind = len(letters) - 1 - letters.index(letter)
            index = f"[..., :0{', :' * behind}]"
            end = self.text.span(found)[1]
            if not is_atom(found) and self.text.source[end : end + 1] == ")":
                self._insert(end + 1, index)
            else:
                self._replace(found, atom(self.words.of(found)) + index)

    def _unwrap(self) -> set[ast.stmt]:
        """Softmax, dropout, casts and transpositions of the weights give back what they were given."""
        removed: set[ast.stmt] = set()
        done: set[ast.AST] = set()
        for term in self.found.weights.walk():
            node = term.value.node
            if node is None or term.kind in ("phi", "same", "loop", "carried") or node in done:
                continue
            done.add(node)
            inner = self._input_of(term)
            found = operand(self.flow, node, inner)
            if found is None:
                raise Refuse("the softmax's input cannot be told apart in the source")
            if self._is_inside_final(node):
                continue
            statement = term.value.statement
            assert statement is not None
            if self._becomes_nothing(statement, done):
                removed.add(statement)
        for term in self.found.weights.walk():
            node = term.value.node
            statement = term.value.statement
            if node is None or term.kind in ("phi", "same") or statement in removed or self._is_inside_final(node):
                continue
            self._strip(node, operand(self.flow, node, self._input_of(term)))
        self.result.removed |= removed
        return removed

    def _input_of(self, term: Term) -> Value:
        while term.kind != "softmax" and term.inner and term.inner[0].value.node is term.value.node:
            term = term.inner[0]
        if term.kind == "softmax":
            return term.value.args[0]
        return term.inner[0].value

    def _is_inside_final(self, node: ast.AST) -> bool:
        final = self.found.final.node
        return final is not None and any(each is node for each in ast.walk(final))

    def _becomes_nothing(self, statement: ast.stmt, weights: set[ast.AST]) -> bool:
        """`att = softmax(att)` says nothing once the softmax is gone."""
        if not (isinstance(statement, ast.Assign) and len(statement.targets) == 1):
            return False
        target = statement.targets[0]
        node: ast.expr | None = statement.value
        values = {term.value: term for term in self.found.weights.walk()}
        while node is not None and (term := values.get(self.flow.seen.get(node))) is not None:  # type: ignore[arg-type]
            if isinstance(node, ast.Name) or term.kind in ("phi", "same") and not term.value.inner:
                break
            weights.add(node)
            node = operand(self.flow, node, self._input_of(term))
        return isinstance(node, ast.Name) and isinstance(target, ast.Name) and node.id == target.id

    def _strip(self, node: ast.AST, inner: ast.expr | None) -> None:
        assert inner is not None
        start, end = self.text.span(node)
        first, last = self.text.span(inner)
        parens = not isinstance(inner, (ast.Name, ast.Call, ast.Attribute, ast.Subscript))
        for edit in (Edit(start, first, "(" if parens else ""), Edit(last, end, ")" if parens else "")):
            if edit not in self.result.edits and (edit.start < edit.end or edit.text):
                self.result.edits.append(edit)

    def _with_edits(self, node: ast.expr, removed: set[ast.stmt]) -> str:
        """The text of the weights in the second product, without softmax and the like."""
        del removed
        values = {term.value: term for term in self.found.weights.walk()}
        while (term := values.get(self.flow.seen.get(node))) is not None:  # type: ignore[arg-type]
            if isinstance(node, ast.Name) or term.value.node is not node:
                break
            inner = operand(self.flow, node, self._input_of(term))
            assert inner is not None
            node = inner
        start, end = self.text.span(node)
        edits = [each for each in self.result.edits if start <= each.start and each.end <= end]
        self.result.edits = [each for each in self.result.edits if each not in edits]
        text, at = "", start
        for each in sorted(edits, key=lambda edit: edit.start):
            text += self.words.between(at, each.start) + each.text
            at = each.end
        return text + self.words.between(at, end)

    def _replace(self, node: ast.AST, text: str) -> None:
        start, end = self.text.span(node)
        self.result.edits.append(Edit(start, end, text))

    def _insert(self, at: int, text: str) -> None:
        self.result.edits.append(Edit(at, at, text))

    # the call

    def _write_call(self, q: str, arguments: list[str], scale: Scale) -> None:
        function = self._function()
        k = self.pieces.tensor(self.found.k, self.found.product.value, "sd")
        v = self.pieces.tensor(self.found.v, self.found.final, "se")
        dropout = self.pieces.dropout()
        if dropout is not None:
            arguments.append(f"dropout_p={dropout}")
        arguments.append(f"scale={number(scale)}")
        node = self.found.final.node
        assert node is not None
        arguments = [*(self.pieces.lifted(each) for each in (q, k, v)), *arguments]
        width = len(self.text.indent(self.pieces.at)) + 16
        self.result.call = call(function, arguments, self.text.indent(self.pieces.at), width)
        self._hoist()
        final = self._after(self.pieces.lowered(self.result.call))
        start, end = self._without_parentheses(node)
        self.result.edits.append(Edit(start, end, final))

    def _hoist(self) -> None:
        statement = self.found.product.value.statement
        assert statement is not None
        lines = [f"{name} = {self.words.flat(node)}" for name, node in self.pieces.hoisted]
        if lines:
            self.result.setup.append((statement, lines))

    def _function(self) -> str:
        if self.extracted:
            return "F.scaled_dot_product_attention"
        found = self.flow.module.spelling(SDPA)
        local = self.flow.before.get(self.pieces.at, {})
        if found is not None and found.split(".")[0] not in local:
            return found
        name = "F" if "F" not in self.flow.module.names and "F" not in local else "torch.nn.functional"
        if name != "F" and ("torch" in local or "torch" in self.flow.module.names):
            raise Refuse("`torch` and `F` mean something else here", "import torch under a name of its own")
        self.result.imported = f"import torch.nn.functional{' as F' if name == 'F' else ''}"
        return f"{name}.scaled_dot_product_attention"

    def _without_parentheses(self, node: ast.AST) -> tuple[int, int]:
        """The span of the second product, with the parentheses that a call does not need."""
        start, end = self.text.span(node)
        source = self.text.source
        before = source[:start].rstrip(" \t")
        if isinstance(node, ast.BinOp) and before.endswith("(") and source[end : end + 1] == ")":
            earlier = before[:-1].rstrip(" \t")
            word = re.search(r"\w*$", earlier)
            spaced = len(earlier) < len(before) - 1 and word is not None and keyword.iskeyword(word[0])
            if spaced or not (earlier[-1:].isalnum() or earlier[-1:] in ("_", ")", "]", '"', "'")):
                return len(before) - 1, end + 1
        return start, end

    def _after(self, text: str) -> str:
        """What follows the product may be `.view`, which SDPA's output need not allow."""
        for user in self.found.final.users:
            if user.op == "view" and (user.inner or self.found.guards):
                return f"{text}.contiguous()"
            if user.op == "view" and isinstance(user.node, ast.Call) and isinstance(user.node.func, ast.Attribute):
                end = self.text.span(user.node.func)[1]
                if self.text.source[end - 4 : end] == "view":
                    self.result.edits.append(Edit(end - 4, end, "reshape"))
        return text


def _names(node: ast.expr) -> list[ast.Name]:
    return [each for each in ast.walk(node) if isinstance(each, ast.Name)]


def _conditions(term: Term) -> dict[Term, object] | None:
    """The test of each fill, where it is one branch of a simple `if`."""
    found: dict[Term, object] = {}

    def see(each: Term, condition: object) -> bool:
        if each.kind == "fill":
            found[each] = condition
        if each.kind == "phi":
            one, two = each.inner
            has_one = any(t.kind == "fill" for t in one.walk() if t not in set(two.walk()))
            has_two = any(t.kind == "fill" for t in two.walk() if t not in set(one.walk()))
            if has_two or condition is not None and has_one:
                return False
            shared = set(two.walk())
            for inner in one.walk():
                if inner.kind == "fill" and inner not in shared:
                    found[inner] = each.condition
            return see(two, condition)
        return all(see(inner, condition) for inner in each.inner)

    return found if see(term, None) else None  # type: ignore[return-value]
