"""The call that replaces an attention: q, k, v in SDPA's order, dropout, scale, and the output put back."""

import ast
from dataclasses import dataclass, field

from flashmore.upgrade.axes import Letters, Refuse
from flashmore.upgrade.budget import walk
from flashmore.upgrade.emit.words import Words, atom, factor, fresh, reordered
from flashmore.upgrade.patterns.products import MORE, moved
from flashmore.upgrade.patterns.scales import NUMBER, TENSOR, classify
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.plan import Attention, Operand
from flashmore.upgrade.source.attributes import Attribute, Kind
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.graph import number as number_of
from flashmore.upgrade.source.nodes import Stability, operand
from flashmore.upgrade.source.operations import MOVES

SDPA = "torch.nn.functional.scaled_dot_product_attention"

_LONGEST = 1000
"""Characters of a scale or a dropout rate: one that differs from branch to branch doubles with each."""


@dataclass
class Scale:
    """What the scores are multiplied by: Python numbers for `scale=`, learned tensors for q."""

    numbers: list[tuple[str, str]] = field(default_factory=list)
    learned: list[tuple[str, str]] = field(default_factory=list)
    default: bool = False
    """It is surely 1 / sqrt(D), PyTorch's default, so that nothing has to be given."""


class Pieces:
    """The texts of a call's arguments."""

    def __init__(self, found: Attention, words: Words) -> None:
        self.found = found
        self.words = words
        self.flow = found.flow
        self.stability = Stability(found.flow)
        self.at = _statement(found.final)
        self.hoisted: list[tuple[str, ast.expr]] = []
        self.taken = {each.id for each in walk(self.flow.function) if isinstance(each, ast.Name)}
        self.taken |= {each.arg for each in walk(self.flow.function) if isinstance(each, ast.arg)}
        self.emitted: list[ast.expr] = []

    def read(self, node: ast.expr | None, what: str) -> str:
        """The text of an expression that is read again where the call stands."""
        if node is None:
            raise Refuse(f"{what} is computed inside a helper", "move it into this function")
        if not self.stability.holds(node, self.at):
            raise Refuse(f"{what} changes before the values are multiplied")
        self.emitted.append(node)
        return self.words.flat(node)

    def peeled(self, which: Operand, owner: Value) -> tuple[ast.expr, Letters]:
        """An operand's expression without the transpositions that stand in it, and its letters."""
        node = operand(self.flow, owner.node, which.value)
        if node is None:
            raise Refuse("the operands of the product cannot be separated in the source")
        value, letters = which.value, which.letters
        while (inner := _before(value, letters)) is not None:
            found = operand(self.flow, node, value.args[0])
            if found is None or self.flow.seen.get(node) is not value or value.node is not node:
                break
            node, value, letters = found, value.args[0], inner
        return node, letters

    def tensor(self, which: Operand, owner: Value, last: str) -> str:
        """q, k or v, in the order batch, rows, channels."""
        node, letters = self.peeled(which, owner)
        target = (*self.found.batch, *last)
        if MORE in target and MORE not in letters:
            raise Refuse("the number of dimensions is unknown")
        text = self._stable(node, which)
        done = reordered(text, letters, target)
        if last[-1] in letters and letters[-1] != last[-1]:
            # Fused kernels need a last stride of 1. This is no copy where k was given transposed.
            done = f"{done}.contiguous()"
        if self._lacks_heads(letters, target):
            done = self._expanded(done, letters, target)
        return done

    def _stable(self, node: ast.expr, which: Operand) -> str:
        self.emitted.append(node)
        owner = self.found.final if which is self.found.v else self.found.product.value
        if owner.statement is self.at or self.stability.holds(node, self.at):
            return self.words.flat(node)
        known = next((name for name, other in self.hoisted if other is node), None)
        if known is not None:
            return known
        name = fresh({id(self.found.q): "query", id(self.found.k): "key"}.get(id(which), "value"), self.taken)
        self.taken.add(name)
        self.hoisted.append((name, node))
        return name

    def _lacks_heads(self, letters: Letters, target: Letters) -> bool:
        return any(each not in letters for each in target)

    def _expanded(self, text: str, letters: Letters, target: Letters) -> str:
        """Keys and values that all heads share, as wide as the queries: the kernels broadcast nothing."""
        q_node, q_letters = self.peeled(self.found.q, self.found.product.value)
        q_text = self._stable(q_node, self.found.q)
        sizes = []
        for each in target:
            if each in letters:
                sizes.append("-1")
            elif each in q_letters:
                sizes.append(f"{atom(q_text)}.shape[{q_letters.index(each)}]")
            else:
                raise Refuse("an axis of the values is in neither queries nor keys")
        return f"{text}.expand({', '.join(sizes)})"

    def leading(self) -> str | None:
        """The sizes of all batch axes but the last, where those become one; None where there are too few.

        Fused kernels take four dimensions; of more, PyTorch's unfused one computes them. Sizes that are not
        surely the same for queries, keys and values may broadcast, so these are left as they are.
        """
        batch, found = self.found.batch, self.found
        node, letters = self.peeled(found.q, found.product.value)
        if MORE in batch or len(batch) <= 2 or not isinstance(node, ast.Name):
            return None
        sizes = [self._sizes(each, batch) for each in (found.q, found.k, found.v)]
        if None in sizes or sizes[1:] != sizes[:-1]:
            return None
        text, places = self._stable(node, found.q), [letters.index(each) for each in batch[:-1]]
        if places == [*range(len(places))]:
            return f"{text}.shape[:{len(places)}]"
        return f"({', '.join(f'{text}.shape[{place}]' for place in places)})"

    def _sizes(self, which: Operand, batch: Letters) -> list[str] | None:
        """The sizes of an operand's batch axes, where all are known."""
        dims = self.found.shapes.of(which.value)
        if (
            dims is None
            or len(dims) != len(which.letters)
            or any(each not in which.letters for each in batch)
        ):
            return None
        return [dims[which.letters.index(each)] for each in batch]

    def lifted(self, text: str) -> str:
        """Two or three dimensions as four: otherwise the slow kernel runs."""
        batch = self.found.batch
        if MORE in batch or len(batch) >= 2:
            return text
        return f"{atom(text)}.unsqueeze(0)" if len(batch) == 1 else f"{atom(text)}[None, None]"

    def lowered(self, text: str) -> str:
        """The output with the dimensions and the order that the second product had."""
        batch, out = self.found.batch, self.found.out
        if MORE not in batch and len(batch) < 2:
            text = f"{text}.squeeze(0)" if len(batch) == 1 else f"{text}[0, 0]"
        return reordered(text, (*batch, "l", "e"), out)

    def scale(self) -> Scale:
        """Everything that multiplies the product."""
        if self.has_default_scale():
            return Scale(default=True)
        found = self._scale(self.found.scores, {})
        result = Scale([*found.numbers], [*found.learned])
        if (added := self.found.product.value).op == "baddbmm":
            self._alpha(added, result)
        return result

    def has_default_scale(self) -> bool:
        """Whether the one scale is surely 1 / sqrt(D), PyTorch's default, D the last dimension of q."""
        found = self.found
        terms = [term for term in found.scores.walk() if term.kind in ("scale", "phi", "loop")]
        if len(terms) != 1 or terms[0].kind != "scale" or found.product.added is not None:
            return False
        assert terms[0].other is not None
        base = _root_of(terms[0].other, str(terms[0].detail[1]))
        if base is None:
            return False
        tensor, index = found.shapes.size_of(base)
        for each in (found.q, found.k):
            at = each.letters.index("d")
            if tensor is each.value:  # other axes may stand for several dimensions
                from_behind = index == at - len(each.letters) and MORE not in each.letters[at:]
                return from_behind or (index == at and MORE not in each.letters[:at])
        dims, at = found.shapes.of(found.q.value), found.q.letters.index("d")
        if dims is None or len(dims) != len(found.q.letters):
            return False
        return dims[at] == found.shapes.size(base)

    def _alpha(self, value: Value, result: Scale) -> None:
        alpha = value.named.get("alpha")
        if alpha is None:
            return
        text = self.read(operand(self.flow, value.node, alpha), "the scale")
        kind = classify(alpha, self.flow.module)
        if kind == TENSOR:
            raise Refuse("the scores are multiplied by a tensor")
        (result.numbers if kind == NUMBER else result.learned).append(("mul", text))

    def _scale(self, term: Term, known: dict[Term, Scale]) -> Scale:
        if term not in known:
            known[term] = self._last_scale(term, known)
        return known[term]

    def _last_scale(self, term: Term, known: dict[Term, Scale]) -> Scale:
        if term.kind == "product":
            return Scale()
        if term.kind == "loop" and any(each.kind == "scale" for each in term.inner[1].walk()):
            raise Refuse("the scores are scaled inside a loop")
        if term.kind == "phi":
            return self._scale_of_branches(term, known)
        inner = self._scale(term.inner[0], known)
        if term.kind != "scale":
            return inner
        assert term.other is not None
        kind, how = map(str, term.detail)
        if term.value.inner and (constant := number_of(term.other)) is not None:
            return Scale([*inner.numbers, (how, repr(constant))], inner.learned)
        if term.value.inner:
            raise Refuse("the scores are scaled inside a helper", "move the scale into this function")
        text = self.read(operand(self.flow, term.value.node, term.other), "the scale")
        if kind == "number":
            return Scale([*inner.numbers, (how, text)], inner.learned)
        return Scale(inner.numbers, [*inner.learned, (how, text)])

    def _scale_of_branches(self, term: Term, known: dict[Term, Scale]) -> Scale:
        one, two = (self._scale(each, known) for each in term.inner)
        if one == two:
            return one
        if one.learned != two.learned or term.condition is None:
            raise Refuse("a learned scale is used on only one branch")
        if term.condition.node is None or not self.stability.holds(term.condition.node, self.at):
            raise Refuse("the condition for the scale changes before the values are multiplied")
        test = self.words.condition(term.condition)
        text = f"({number(one)} if {test} else {number(two)})"
        if len(text) > _LONGEST:
            raise Refuse("the scale differs on too many branches")
        return Scale([("mul", text)], one.learned)

    def dropout(self) -> str | None:
        """The text of `dropout_p`, None where there is no dropout."""
        text = self._dropout(self.found.weights, {})
        return None if text in (None, "0.0") else text

    def _dropout(self, term: Term, known: dict[Term, str | None]) -> str | None:
        if term not in known:
            known[term] = self._last_dropout(term, known)
            if len(known[term] or "") > _LONGEST:
                raise Refuse("dropout differs on too many branches")
        return known[term]

    def _last_dropout(self, term: Term, known: dict[Term, str | None]) -> str | None:
        if term.kind == "softmax":
            return None
        inner = self._dropout(term.inner[0], known)
        if term.kind == "phi":
            other = self._dropout(term.inner[1], known)
            if inner == other:
                return inner
            if term.condition is None or term.condition.node is None:
                raise Refuse("dropout is applied on only one branch of a helper")
            if not self.stability.holds(term.condition.node, self.at):
                raise Refuse("the condition for dropout changes before the values are multiplied")
            test = self.words.condition(term.condition)
            if other is None and inner is not None and " if " in inner:
                first, rest = inner.split(" if ", 1)
                return f"{first} if {test} and {rest}"
            return f"({inner or '0.0'}) if {test} else ({other or '0.0'})"
        if term.kind == "dropout" and term.value.op != "identity":
            if inner not in (None, "0.0"):
                raise Refuse("dropout is applied twice to the weights")
            return self._one_dropout(term)
        return inner

    def _one_dropout(self, term: Term) -> str | None:
        value = term.value
        if isinstance(value.detail, tuple):
            attribute, kind = value.detail
            assert isinstance(attribute, Attribute)
            assert isinstance(kind, Kind)
            name = self.words.names.get(value.node.func) if isinstance(value.node, ast.Call) else None
            path = name or attribute.path
            if isinstance(value.node, ast.Call) and not value.inner:
                self.emitted.append(value.node.func)
            rate = f'getattr({path}, "p", 0.0)' if "identity" in kind.maybe else f"{path}.p"
            return f"{rate} if {path}.training else 0.0"
        if value.op == "call":
            node = value.node.func if isinstance(value.node, ast.Call) else None
            path = self.read(node, "the dropout")
            return f"{path}.p if {path}.training else 0.0"
        return self._functional_dropout(value)

    def _functional_dropout(self, value: Value) -> str | None:
        p, training = value.get(1, "p"), value.get(2, "training") or value.named.get("train")
        given = [each for each in (p, training) if each is not None and each.op != "const"]
        if not isinstance(value.node, ast.Call) or (
            value.inner and any(operand(self.flow, value.node, each) is None for each in given)
        ):
            raise Refuse("dropout is applied inside a helper", "move it into this function")
        if value.detail == "made" and p is not None and not p.detail:
            return None
        if p is None or (p.op == "const" and (value.inner or value.detail == "made")):
            p_text = "0.5" if p is None else repr(p.detail)
        else:
            p_text = self.read(operand(self.flow, value.node, p), "the dropout rate")
        if training is None or (training.op == "const" and training.detail is True):
            return p_text
        if training.op == "const":
            return None
        return (
            f"{factor(p_text)} if {self.read(operand(self.flow, value.node, training), 'training')} else 0.0"
        )


def _root_of(value: Value, how: str) -> Value | None:
    """The x of a factor 1 / sqrt(x): `/ x**0.5`, `* x**-0.5`, `/ math.sqrt(x)`, `* (1 / math.sqrt(x))`."""
    if how == "mul" and value.op in ("div", "true_divide") and number_of(value.args[0]) == 1:
        return _root_of(value.args[1], "div")
    if value.op == "sqrt" and how == "div" and len(value.args) == 1:
        return value.args[0]
    power = number_of(value.args[1]) if value.op == "pow" and len(value.args) == 2 else None
    return value.args[0] if power == (0.5 if how == "div" else -0.5) else None


def number(scale: Scale) -> str:
    """Several factors as one number."""
    text = ""
    for how, each in uncancelled(scale.numbers):
        if not text:
            text = each if how == "mul" else f"1.0 / {factor(each)}"
        else:
            text = f"{text} {'*' if how == 'mul' else '/'} {factor(each)}"
    return text or "1.0"


def uncancelled(factors: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Factors without those that are divided by and multiplied with again."""
    left = list(factors)
    for how, each in factors:
        other = ("mul" if how == "div" else "div", each)
        if (how, each) in left and other in left:
            left.remove((how, each))
            left.remove(other)
    return left


def _before(value: Value, letters: Letters) -> Letters | None:
    """The letters before a transposition."""
    if value.inner or value.op not in MOVES:
        return None
    marks = tuple(str(index) if each != MORE else MORE for index, each in enumerate(letters))
    after = moved(marks, value)
    if after is None:
        return None
    return tuple(letters[after.index(mark)] for mark in marks)


def _statement(value: Value) -> ast.stmt:
    assert value.statement is not None
    return value.statement
