"""The scores' own statements, working on zeros: what they make of them is the bias."""

import ast

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import walk
from flashmore.upgrade.emit.call import uncancelled
from flashmore.upgrade.emit.hiding import Step, from_caller, keep, may_hide, test
from flashmore.upgrade.emit.words import atom, fresh, reordered
from flashmore.upgrade.emit.writer import Emission
from flashmore.upgrade.emit.zeros import Zeros
from flashmore.upgrade.patterns.masks import FINITE, INFINITE, is_lowest
from flashmore.upgrade.patterns.products import MORE
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.site import Edit
from flashmore.upgrade.source.graph import Condition, Value, number
from flashmore.upgrade.source.nodes import operand


class Replay(Zeros):
    """Writes attentions of which nothing but affinity is known."""

    def _replay(self) -> Emission:
        self.result.rule = "bias"
        fills = [term.detail[0] for term in self.found.scores.walk() if term.kind == "fill"]
        if self.found.zeroed and fills != [INFINITE]:
            raise Refuse(
                "weights are set to zero after the softmax, and the masks cannot become one boolean attn_mask"
            )
        if len({*fills}) > 1:  # rows that keep no key would get other gradients
            raise Refuse("some masks use -inf and some a finite number")
        if INFINITE in fills:
            self._rows_of_nan()
        scale = self.pieces.scale()
        q = self._query(scale)
        self._check_replay()
        name = fresh("bias", self.taken)
        hidden, when = self._hidden_by_fills(name)
        self._clamp_added()
        self._zero_product()
        self._unwrap()
        weights = operand(self.flow, self.found.final.node, self.found.weights.value)
        if weights is None:
            raise Refuse(
                "the weights are not an operand of their own in the product with the values",
                "assign them to a name first",
            )
        bias = self._with_edits(weights)
        if not self._keeps_reshapes:
            bias = reordered(bias, self.found.layout, (*self.found.batch, "l", "s"))
        if hidden is not None:
            q, bias = self._rows_of_bias(q, bias, name, hidden, when), name
        bias = self.lowest(bias) if self._may_overflow() else self.like_queries(bias)
        if MORE not in self.found.batch and len(self.found.batch) < 2:
            bias = self.pieces.lifted(bias)
        self._write_call(q, [f"attn_mask={bias}"], scale)
        return self.result

    @property
    def _keeps_reshapes(self) -> bool:
        """Whether the softmax has other dimensions than both products, as in `view(B, H, L, S)`."""
        return MORE in self.found.layout and MORE not in self.found.batch

    def _check_replay(self) -> None:
        terms = list(self.found.scores.walk())
        fills = [term for term in terms if term.kind == "fill" and term.detail[0] == FINITE]
        adds = [term for term in terms if term.kind == "add" and term.other is not None]
        hidden = {term for fill in fills for term in fill.walk()}
        if fills and any(each not in hidden or self._may_hide(each) for each in adds):
            raise Refuse(
                "a finite fill and a caller's additive mask together: fully masked rows would change",
                "combine both into one boolean mask",
            )
        by_call: dict[ast.AST, set[str]] = {}
        factors: dict[ast.AST, list[tuple[str, str]]] = {}
        for term in (*terms, *self.found.weights.walk()):
            if term.value.inner and term.value.node is not None and term.kind not in ("phi", "same"):
                by_call.setdefault(term.value.node, set()).add(term.kind)
                if term.kind == "scale":
                    how = (str(term.detail[1]), str(number(term.other)))
                    factors.setdefault(term.value.node, []).append(how)
        for node, found in by_call.items():
            if not uncancelled(factors.get(node, [])):
                found.discard("scale")
            if found & {"softmax", "dropout", "product"} and found & {
                "scale",
                "add",
                "fill",
                "reshape",
                "move",
            }:
                raise Refuse(
                    "a helper both masks keys and computes the softmax", "move the softmax into this function"
                )

    def _may_hide(self, term: Term) -> bool:
        node = operand(self.flow, term.value.node, term.other) if term.other is not None else None
        if node is None or term.other is None:
            return True
        text = self.text.of(node)
        if from_caller(term.other) and not may_hide(term.other, text):
            self.result.assumptions.append(f"`{text}` masks no keys")
        return may_hide(term.other, text)

    def _hidden_by_fills(self, bias: str) -> tuple[str | None, str | None]:
        """What finite fills hide, as a boolean tensor, and the test under which they do; else None twice.

        Rows that keep no key must not depend on q, and fused kernels differentiate them wrongly.
        """
        fills = [
            term for term in self.found.scores.walk() if term.kind == "fill" and term.detail[0] == FINITE
        ]
        if not fills:
            return None, None
        simple = _conditions(self.found.scores)
        plain = len(fills) == 1 and simple is not None and not fills[0].value.inner
        turned = any(
            term.kind in ("reshape", "move") and fills[0] in term.walk() for term in self.found.scores.walk()
        )
        if plain and not turned and simple is not None and self.found.layout == (*self.found.batch, "l", "s"):
            step = Step(fills[0], simple.get(fills[0]))
            return keep(step, self.pieces).hidden, test(step, self.pieces)
        return f"{bias} {self._is_fill(bias)}", None

    def _may_overflow(self) -> bool:
        """Whether the lowest number of float32 may stand in the bias, which autocast would make -inf."""
        terms = list(self.found.scores.walk())
        lowest = any(
            term.kind == "fill" and isinstance(term.detail[1], Value) and is_lowest(term.detail[1])
            for term in terms
        )
        return lowest and any(term.kind in ("add", "cast") for term in terms)

    def _is_fill(self, bias: str) -> str:
        """What tells the one value that all finite fills write, if it is there in the end."""
        terms = list(self.found.scores.walk())
        fills = [term for term in terms if term.kind == "fill"]
        between = any(
            term.kind not in ("fill", "phi", "same", "reshape", "move")
            and any(each in fills for each in term.walk())
            for term in terms
        )
        values = [term.detail[1] for term in fills if isinstance(term.detail[1], Value)]
        one = len({each.key for each in values}) == 1 and all(term.detail[0] == FINITE for term in fills)
        if between or not one:
            raise Refuse(
                "finite fills in several places: fully masked rows would change",
                "fill with -inf",
            )
        node = operand(self.flow, fills[0].value.node, values[0])
        if node is not None and self.pieces.stability.holds(node, self.pieces.at):
            return f"== {self.words.flat(node)}"
        if is_lowest(values[0]):
            return f"== {self._torch()}.finfo({bias}.dtype).min"
        known = None if fills[0].value.inner else number(values[0])
        if known is not None:  # which a product with a mask may have rounded
            return f"< {known / 2}"
        raise Refuse("the mask changes before the values are multiplied")

    def _rows_of_bias(self, q: str, bias: str, name: str, hidden: str, when: str | None) -> str:
        """Rows that keep no key attend to all keys alike: their queries and their bias become zeros."""
        rows, query = fresh("rows", self.taken), fresh("query", self.taken)
        lines = [f"{name} = {bias}"] if when is None else [f"{query}, {name} = {q}, {bias}", f"if {when}:"]
        reset = [
            f"{rows} = {atom(hidden)}.all(dim=-1, keepdim=True)  # fully masked rows get uniform weights",
            f"{query} = {atom(q) if when is None else query}.masked_fill({rows}, 0)",
            f"{name} = {name}.masked_fill({rows}, 0)",
        ]
        lines += reset if when is None else [f"    {each}" for each in reset]
        self.result.setup.append((self.pieces.at, lines))
        return query

    def _unwrap(self) -> None:
        """Softmax, dropout, casts and transpositions of the weights give back what they were given."""
        removed: set[ast.stmt] = set()
        done: set[ast.AST] = set()
        unwrapped = [
            (term, term.value.node)
            for term in self.found.weights.walk()
            if term.value.node is not None
            and term.kind not in ("phi", "same")
            and not (term.kind == "reshape" and self._keeps_reshapes)
        ]
        for term, node in unwrapped:
            if term.kind in ("loop", "carried") or node in done:
                continue
            done.add(node)
            if term.value.op == "setitem":  # `weights[mask] = 0`
                if not isinstance(term.value.statement, ast.Assign) or term.value.statement.targets != [node]:
                    raise Refuse("a statement that changes the weights also does something else")
                removed.add(term.value.statement)
                continue
            inner = self._input_of(term)
            found = operand(self.flow, node, inner)
            if found is None:
                raise Refuse(
                    "the scores are not an argument of their own in the call of softmax",
                    "assign them to a name first",
                )
            if self._is_inside_final(node):
                continue
            statement = term.value.statement
            assert statement is not None
            if self._becomes_nothing(statement, done):
                removed.add(statement)
        for term, node in unwrapped:
            statement = term.value.statement
            if statement in removed or self._is_inside_final(node):
                continue
            whole = isinstance(statement, ast.Assign) and statement.value is node
            self._strip(node, operand(self.flow, node, self._input_of(term)), whole)
        self.result.removed |= removed

    def _input_of(self, term: Term) -> Value:
        while term.kind != "softmax" and term.inner and term.inner[0].value.node is term.value.node:
            term = term.inner[0]
        if term.kind == "softmax":
            made = {each.value: each for each in self.found.scores.walk()}
            value = term.value.args[0]
            while value.inner and value.node is term.value.node and value in made and made[value].inner:
                value = made[value].inner[0].value
            return value
        return term.inner[0].value

    def _is_inside_final(self, node: ast.AST) -> bool:
        final = self.found.final.node
        return final is not None and any(each is node for each in walk(final))

    def _becomes_nothing(self, statement: ast.stmt, weights: set[ast.AST]) -> bool:
        """`att = softmax(att)` says nothing once the softmax is gone."""
        if not (isinstance(statement, ast.Assign) and len(statement.targets) == 1):
            return False
        target = statement.targets[0]
        node: ast.expr | None = statement.value
        values = {term.value: term for term in self.found.weights.walk()}
        while node is not None:
            term = values.get(self.flow.seen[node]) if node in self.flow.seen else None
            if term is None:
                break
            if isinstance(node, ast.Name) or (term.kind in ("phi", "same") and not term.value.inner):
                break
            weights.add(node)
            node = operand(self.flow, node, self._input_of(term))
        return isinstance(node, ast.Name) and isinstance(target, ast.Name) and node.id == target.id

    def _strip(self, node: ast.AST, inner: ast.expr | None, whole: bool) -> None:
        assert inner is not None
        whole = whole and inner.lineno == inner.end_lineno
        start, end = self.text.span(node)
        first, last = self.text.span(inner)
        parens = not whole and not isinstance(inner, (ast.Name, ast.Call, ast.Attribute, ast.Subscript))
        for edit in (Edit(start, first, "(" if parens else ""), Edit(last, end, ")" if parens else "")):
            if edit not in self.result.edits and (edit.start < edit.end or edit.text):
                self.result.edits.append(edit)

    def _with_edits(self, node: ast.expr) -> str:
        """The text of the weights in the second product, without softmax and the like."""
        values = {term.value: term for term in self.found.weights.walk()}
        while (term := values.get(self.flow.seen.get(node))) is not None:  # type: ignore[arg-type]
            if isinstance(node, ast.Name) or term.value.node is not node:
                break
            if term.kind == "reshape" and self._keeps_reshapes:
                break
            inner = operand(self.flow, node, self._input_of(term))
            assert inner is not None
            node = inner
        start, end = self.text.span(node)
        edits = [each for each in self.result.edits if start <= each.start and each.end <= end]
        self.result.edits = [each for each in self.result.edits if each not in edits]
        text, at = "", start
        for each in sorted(edits, key=lambda edit: (edit.start, edit.end)):
            text += self.words.between(at, each.start) + each.text
            at = each.end
        return text + self.words.between(at, end)

    def _clamp_added(self) -> None:
        """What a caller adds stays finite, each by itself: two hidden keys may well add up to -inf."""
        for term in self.found.scores.walk():
            if term.kind != "add" or term.other is None or term.value.inner or not from_caller(term.other):
                continue
            node = operand(self.flow, term.value.node, term.other)
            if node is None:
                raise Refuse("the bias is not an operand of its own where it is added")
            text = self.words.of(node)
            self._replace(node, self.clamped(text, term.other, subtracted=term.detail == ("-",)))
            self.adds_a_callers()


def _conditions(term: Term) -> dict[Term, Condition | None] | None:
    """The test of each fill, where it is one branch of a simple `if`."""
    found: dict[Term, Condition | None] = {}

    def see(each: Term, condition: Condition | None) -> bool:
        if each.kind == "fill":
            found[each] = condition
        if each.kind == "phi":
            one, two = each.inner
            has_one = any(t.kind == "fill" for t in one.walk() if t not in set(two.walk()))
            has_two = any(t.kind == "fill" for t in two.walk() if t not in set(one.walk()))
            if has_two or (condition is not None and has_one):
                return False
            shared = set(two.walk())
            own = [inner for inner in one.walk() if inner not in shared]
            fills = {inner for inner in own if inner.kind == "fill"}
            if any(inner.kind == "phi" and not fills.isdisjoint(inner.walk()) for inner in own):
                return False  # under two tests
            found.update(dict.fromkeys(fills, each.condition))
            return see(two, condition)
        return all(see(inner, condition) for inner in each.inner)

    return found if see(term, None) else None
