"""From a product with the values back to the softmax: only dropout, casts and transpositions."""

import re

from flashmore.upgrade.budget import step
from flashmore.upgrade.patterns.scales import NUMBER, classify
from flashmore.upgrade.patterns.terms import Term, Unfit, joined
from flashmore.upgrade.patterns.zeros import NANS, zeroing
from flashmore.upgrade.source.attributes import Attribute, Kind, kind_of, may_be_dropout
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.operations import CASTS, MOVES, RESHAPES

_FATAL = {
    "masked_fill": "weights are masked after the softmax and not renormalised",
    "setitem": "weights are changed by index after the softmax",
    "where": "weights are replaced after the softmax",
}
_REASONS = {
    "mul": "the weights are multiplied by something after the softmax",
    "div": "the weights are divided after the softmax (renormalised)",
    "add": "something is added to the weights after the softmax",
    "sub": "something is subtracted from the weights after the softmax",
    "matmul": "the weights are mixed after the softmax, before the values (talking heads)",
    "einsum": "the weights are mixed after the softmax, before the values (talking heads)",
    "layer:Linear": "heads are mixed after the softmax by a layer",
    "layer:Conv2d": "heads are mixed after the softmax by a convolution",
    "normalize": "the weights are renormalised after the softmax",
    "index": "only part of the weights is used",
    "cat": "the weights of several softmaxes are joined",
    "log_softmax": "the softmax is a log_softmax",
}


_DROPOUT = re.compile(
    r"(\w+_)?(drop|dropout)(_(layer|module|op|fn|attn|att|attention|weights|scores|probs))?"
)
"""Arguments that are dropout: drop path, drop block and the like are something else."""


def is_named_softmax(value: Value) -> bool:
    """A call of something that is called softmax, and is defined elsewhere."""
    return value.op == "call" and "softmax" in str(value.detail).rsplit(".", 1)[-1].lower()


def why_not_followed(value: Value) -> str:
    """Why it is not known what a call of something that is called softmax computes."""
    name, callee = value.detail, value.args[0].op if value.args else ""
    if callee == "closure":
        return f"what `{name}` returns is unclear, since a decorator or its arguments decide it"
    if callee == "selfattr":
        return f"`{name}` may be something else than a softmax: what the class stores there is unclear"
    return f"the project does not define `{name}`, or in several ways"


class Weights:
    """Walks from the value product's operand to the softmax."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.seen: dict[Value, Term | Unfit | None] = {}

    def walk(self, value: Value) -> Term | Unfit | None:
        """The chain from a softmax to a value: None where there is no softmax near."""
        step()
        if value not in self.seen:
            self.seen[value] = None
            self.seen[value] = self._walk(value)
        return self.seen[value]

    def _walk(self, value: Value) -> Term | Unfit | None:
        op = value.op
        if op == "softmax":
            return Term("softmax", value)
        if op == "phi":
            return self._phi(value)
        if is_named_softmax(value):
            return Unfit(why_not_followed(value), value)
        if op in ("dropout", "identity") or self._is_dropout_call(value):
            inner = self.walk(value.args[1 if op == "call" else 0])
            return Term("dropout", value, (inner,)) if isinstance(inner, Term) else inner
        for kind, ops in (("cast", CASTS), ("move", MOVES | {"rearrange"}), ("reshape", RESHAPES)):
            if op in ops and value.args:
                inner = self.walk(value.args[0])
                return Term(kind, value, (inner,)) if isinstance(inner, Term) else inner
        if (zeros := zeroing(value)) is not None and isinstance(inner := self.walk(zeros.base), Term):
            kind = "nans" if zeros.kind == NANS else "zeroed"
            return Term(kind, value, (inner,), zeros.test, (zeros.kind, zeros.keeps))
        if op in ("mul", "div") and len(value.args) == 2 and (scaled := self._scaled(value)) is not None:
            return scaled
        return self._unknown(value)

    def _scaled(self, value: Value) -> Term | None:
        """Weights that are multiplied by a number, as the output may be instead."""
        pairs = [value.args, value.args[::-1]] if value.op == "mul" else [value.args]
        for base, by in pairs:
            if classify(by, self.module) == NUMBER and isinstance(inner := self.walk(base), Term):
                return Term("scale", value, (inner,), by, (NUMBER, value.op))
        return None

    def _is_dropout_call(self, value: Value) -> bool:
        """A dropout that came in as an argument, `dropout(p_attn)`, or in a class that is not known."""
        if value.op != "call" or len(value.args) != 2 or value.named:
            return False
        callee = value.args[0].detail
        if isinstance(callee, Attribute):
            unknown = kind_of(callee, self.module).name == "unknown" and may_be_dropout(callee)
            return unknown and _DROPOUT.fullmatch(callee.name) is not None
        return value.args[0].op == "param" and _DROPOUT.fullmatch(str(callee)) is not None

    def _phi(self, value: Value) -> Term | Unfit | None:
        one, two = (self.walk(each) for each in value.args)
        if one is None and two is None:
            return None
        empty = Unfit("the weights come from elsewhere on one branch", value)
        return joined(value, one or empty, two or empty)

    def _unknown(self, value: Value) -> Unfit | None:
        if value.op in ("tuple", "return", "const", "missing"):
            return None
        near = [self.walk(each) for each in value.inputs() if each.op not in ("const", "tuple")]
        if value.op == "call" and value.args and value.args[0].op == "selfattr":
            return self._called(value, near)
        if not any(isinstance(each, (Term, Unfit)) for each in near):
            return None
        if value.op in _FATAL:
            return Unfit(_FATAL[value.op], value, fatal=True)
        if value.op in ("call", "layer:Linear") or value.op not in _REASONS:
            if not any(isinstance(each, Term) for each in near):
                return None
            return Unfit(f"`{value.name()}` is applied between the softmax and the values", value)
        unfit = next((each for each in near if isinstance(each, Unfit)), None)
        return unfit or Unfit(_REASONS[value.op], value)

    def _called(self, value: Value, near: list[Term | Unfit | None]) -> Unfit | None:
        attribute = value.args[0].detail
        assert isinstance(attribute, Attribute)
        if not any(isinstance(each, Term) for each in near):
            return None
        kind: Kind = kind_of(attribute, self.module)
        what = ", and its definition is unknown" if kind.name == "unknown" else ""
        return Unfit(f"`{attribute.path}` is applied to the weights{what}", value)
