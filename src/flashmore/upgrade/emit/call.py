"""The call that replaces an attention: q, k, v in SDPA's order, dropout, scale, and the output put back."""

import ast
from dataclasses import dataclass, field

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.emit.operands import Operands
from flashmore.upgrade.emit.words import conjunct, factor
from flashmore.upgrade.patterns.products import MORE
from flashmore.upgrade.patterns.scales import NUMBER, TENSOR, classify
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.source.attributes import Attribute, Kind
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.graph import number as number_of
from flashmore.upgrade.source.nodes import operand

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


class Pieces(Operands):
    """The expressions that the call is made of."""

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
        # A size that is a number is not that of the tensors of the test.
        return dims[at] == found.shapes.size(base) and number_of(base) is None

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
        if term.kind in ("product", "softmax"):
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
        if one.learned == two.learned and number(one) == number(two):
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

    def factors(self) -> list[tuple[str, str]]:
        """The numbers that the weights are multiplied by after the softmax."""
        found = self._scale(self.found.weights, {})
        return uncancelled(found.numbers)

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
            match ast.parse(inner or "None", mode="eval").body:
                case ast.IfExp(asked, body, ast.Constant(0.0)) if other is None and inner is not None:
                    rate, also = (ast.get_source_segment(inner, each) or "" for each in (body, asked))
                    return f"{factor(rate)} if {conjunct(test)} and {conjunct(also)} else 0.0"
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
        asked = self.read(operand(self.flow, value.node, training), "training")
        return f"{factor(p_text)} if {conjunct(asked)} else 0.0"


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
