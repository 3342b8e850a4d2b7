"""What looks like attention, and must not be one call."""

from typing import TYPE_CHECKING

from flashmore.upgrade.axes import Refuse, layouts, softmax_letter
from flashmore.upgrade.patterns.products import MORE, Product, position
from flashmore.upgrade.patterns.scores import shift_of
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.operations import COMPARISONS
from flashmore.upgrade.source.shapes import Shapes

if TYPE_CHECKING:
    from flashmore.upgrade.plan import Attention

_TRUTH = {"bool", "invert", "logical_and", "logical_not", "logical_or"} | COMPARISONS
_VIEWS = {"expand", "index", "permute", "reshape", "squeeze", "transpose", "unsqueeze", "view"}


def refuse_other_shifts(scores: Term, product: Product, softmaxes: tuple[Value, ...], shapes: Shapes) -> None:
    """Only what is the same for all keys of a query may be subtracted: a maximum over the keys."""
    for term in scores.walk():
        if term.kind != "shift" or term.other is None:
            continue
        found, base = shift_of(term.other), layouts(term.inner[0], product.out, shapes)
        dim = found.get(1, "dim") if found is not None else None
        if found is None or dim is None:
            continue  # one number for all
        at = position(base, number(dim)) if base is not None else None
        if base is None or at is None or base[at] != softmax_letter(base, softmaxes):
            raise Refuse("what is subtracted from the scores is not the same for every key")


def refuse_truth_values(found: "Attention") -> None:
    """An `attn_mask` of truth values hides keys, where the old lines add 0 and 1."""
    for term in found.scores.walk():
        if term.kind != "add" or term.other is None:
            continue
        value = term.other
        while value.op in _VIEWS and value.args:
            value = value.args[0]
        if value.op in _TRUTH:
            raise Refuse("truth values are added, which would hide keys in a mask")


def refuse_channels(found: "Attention") -> None:
    """Softmax over channels is the same formula, of another shape: no kernel is made for it."""
    for value in found.flow.values:
        if value.op == "layer:Linear":
            found.shapes.of(value)
    dims = found.shapes.of(found.q.value)
    if dims is None or len(dims) != len(found.q.letters) or MORE in found.q.letters:
        return
    size = dict(zip(found.q.letters, dims, strict=True))
    over_positions = "positions:" in size["d"] or size["d"] in found.shapes.positions
    of_features = any("features:" in size[each] for each in found.rows)
    if over_positions or (of_features and "features:" not in size["d"]):
        raise Refuse(
            "channel attention: the softmax is over channels, and the products sum over positions",
            "leave it as it is: with few channels and many positions, a fused kernel is slower",
        )
