"""Weights that are set to zero after the softmax, where the scores were hidden, or where it gave NaN."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.patterns.masks import INFINITE
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.source.escape import fact
from flashmore.upgrade.source.graph import Value, number

if TYPE_CHECKING:
    from flashmore.upgrade.plan import Attention

MASK, ROWS, NANS = "mask", "rows", "nans"


@dataclass(frozen=True, eq=False)
class Zeroing:
    """An operation that sets weights to zero.

    Args:
        base: the weights.
        test: the boolean tensor that says where; None for `nan_to_num`.
        keeps: whether it says where the weights stay.
    """

    base: Value
    test: Value | None
    keeps: bool

    @property
    def kind(self) -> str:
        """What the test asks: a mask, whether a row keeps any key, or whether the weights are NaN."""
        if self.test is None or _asks_for_nan(self.test, self.base, keeps=self.keeps):
            return NANS
        return MASK if _of_rows(self.test, self.keeps) is None else ROWS


def zeroing(value: Value) -> Zeroing | None:
    """Whether an operation sets some elements of its argument to zero, and leaves the others."""
    op, args = value.op, value.args
    if op == "masked_fill" and args and (mask := value.get(1, "mask")) is not None:
        return Zeroing(args[0], mask, keeps=False) if _is_zero(value.get(2, "value")) else None
    if op == "setitem" and _is_zero(args[2]):
        return Zeroing(args[0], args[1], keeps=False)
    if op == "nan_to_num" and args and not set(value.named) - {"nan"}:
        nan = value.get(1, "nan")
        return (
            Zeroing(args[0], None, keeps=False) if len(args) < 3 and (nan is None or _is_zero(nan)) else None
        )
    if op == "where" and len(args) == 3:
        test, one, two = (args[1], args[0], args[2]) if value.detail == "method" else args
        if _is_zero(two):
            return Zeroing(one, test, keeps=True)
        return Zeroing(two, test, keeps=False) if _is_zero(one) else None
    return None


def _is_zero(value: Value | None) -> bool:
    if value is None:
        return False
    if value.op in ("tensor", "as_tensor", "new_tensor") and value.args:
        return _is_zero(value.args[-1])
    return number(value) == 0 or value.op in ("zeros_like", "new_zeros")


def _asks_for_nan(test: Value, base: Value, *, keeps: bool) -> bool:
    """`isnan(w)` and `w != w`, or their opposites."""
    test, keeps = _straight(test, keeps)
    own = bool(test.args) and all(each is base for each in test.args)
    return own and ((test.op in ("isnan", "ne") and not keeps) or (test.op == "eq" and keeps))


def _straight(test: Value, keeps: bool) -> tuple[Value, bool]:
    """A test without each negation in front of it."""
    while test.op in ("invert", "logical_not") and len(test.args) == 1:
        test, keeps = test.args[0], not keeps
    return test, keeps


def _of_rows(test: Value, keeps: bool) -> tuple[Value, bool] | None:
    """The mask of `hidden.all(-1, keepdim=True)` and `~kept.any(-1, keepdim=True)`, and whether it keeps."""
    test, keeps = _straight(test, keeps)
    dim, kept = test.get(1, "dim"), test.get(2, "keepdim")
    if test.op != ("any" if keeps else "all") or number(dim) != -1 or kept is None or kept.detail is not True:
        return None
    return test.args[0], keeps


def _said(test: Value, keeps: bool) -> tuple[str, bool]:
    """A mask by its meaning: `mask == 0`, `~mask` and where `mask` keeps are one."""
    test, keeps = _straight(test, keeps)
    while test.op in ("eq", "ne", "bool") and (test.op == "bool" or number(test.args[1]) == 0):
        keeps = keeps != (test.op == "eq")
        test, keeps = _straight(test.args[0], keeps)
    return test.key, keeps


def check_zeros(found: "Attention") -> None:
    """Weights may be set to zero where the scores were hidden, since that is what they are there.

    Raises:
        Refuse: they are set to zero elsewhere.
    """
    terms = [*found.weights.walk()]
    fills = [term for term in found.scores.walk() if term.kind == "fill"]
    tests = found.flow.tests

    def where(term: Term, of_rows: bool = False) -> object:
        assert term.other is not None
        mask = (term.other, bool(term.detail[-1] if term.kind == "zeroed" else term.detail[2]))
        mask = (_of_rows(*mask) or mask) if of_rows else mask
        return _said(*mask), {fact(each, tests) for each in term.value.conditions}

    zeros = [term for term in terms if term.kind == "zeroed"]
    if zeros and (
        len(fills) != 1 or any(where(each, each.detail[0] == ROWS) != where(fills[0]) for each in zeros)
    ):
        raise Refuse(
            "weights are masked after the softmax and not renormalised",
            "hide the same keys before the softmax, and the weights need no mask",
        )
    found.zeroed = bool(zeros)
    found.without_nans = any(term.kind == "nans" for term in terms) and all(
        term.detail[0] == INFINITE for term in fills
    )
