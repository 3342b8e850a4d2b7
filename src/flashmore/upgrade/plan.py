"""One attention, understood: its operands with named axes, its scale, masks, dropout, guards and escapes."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from flashmore.upgrade.escape import escapes
from flashmore.upgrade.flow import Flow
from flashmore.upgrade.graph import Condition, Value, number
from flashmore.upgrade.patterns.products import MORE, Product, moved, position, product_of
from flashmore.upgrade.patterns.scores import Scores
from flashmore.upgrade.patterns.terms import Term, Unfit, joined
from flashmore.upgrade.patterns.weights import Weights
from flashmore.upgrade.shapes import Shapes

Letters = tuple[str, ...]
OWN = "values'"
"""The axis that the values alone have, until all axes have their names."""


class Refuse(Exception):
    """A place that must be left as it is.

    Args:
        reason: why.
        advice: what would have to change.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


@dataclass
class Operand:
    """A tensor that goes into the attention, and the letters of its axes."""

    value: Value
    letters: Letters


@dataclass
class Attention:
    """One attention.

    Letters: "l" queries, "s" keys, "d" channels of q and k, "e" channels of v, all others are batch axes, in the
    order of `batch`.
    """

    flow: Flow
    shapes: Shapes
    final: Value
    product: Product
    scores: Term
    weights: Term
    q: Operand
    k: Operand
    v: Operand
    batch: Letters
    out: Letters
    layout: Letters
    softmaxes: tuple[Value, ...]
    guards: list[tuple[Condition, str]] = field(default_factory=list)
    products: tuple[Product, ...] = ()

    @property
    def chain(self) -> set[Value]:
        """Every value between the first product and the second."""
        return chain_of(self.scores, self.weights)


def candidates(flow: Flow, shapes: Shapes) -> Iterator[tuple[Value, int, Term | Unfit]]:
    """Every product one of whose operands comes from a softmax, with the side and the chain."""
    weights = Weights(flow.module)
    for value in flow.values:
        product = None if value.inner else product_of(value, shapes)
        if product is None:
            continue
        for side in (0, 1):
            chain = weights.walk(product.operands[side])
            if chain is not None:
                yield value, side, chain


def attention(flow: Flow, shapes: Shapes, final: Value, side: int, weights: Term) -> Attention:
    """What a value product computes.

    Raises:
        Refuse: it is no attention, or one that must be left alone.
    """
    softmaxes = tuple(term.value for term in weights.walk() if term.kind == "softmax")
    scores = _scores(Scores(flow.module, shapes), weights)
    if isinstance(scores, Unfit):
        raise Refuse(scores.reason)
    products = {product.value: product for product in scores.products()}
    product = next(iter(products.values()))
    if any(
        (each.operands, each.letters, each.out) != (product.operands, product.letters, product.out)
        for each in products.values()
    ):
        raise Refuse("the branches start from different products of queries and keys")
    if any(each.inner for each in products):
        raise Refuse("the product of queries and keys is made inside a helper", "write it into this function")
    product = _ranks(product, final, side, shapes)
    guards = [guard for tree in (scores, weights) for term in tree.walk() for guard in term.guards]
    guards = escapes(chain_of(scores, weights), final, softmaxes[0], guards)
    scores, weights = (specialised(tree, guards) for tree in (scores, weights))
    products = {each.value: each for each in scores.products()}
    layout = _same_layout(scores, product, shapes)
    found = _axes(flow, shapes, product, scores, weights, layout, softmaxes, final, side)
    found.guards = guards
    found.products = tuple(products.values())
    _refuse_channels(found)
    return found


def specialised(term: Term, guards: list[tuple[Condition, str]]) -> Term:
    """A chain as it is under its guards: branches that they rule out fall away."""
    if term.kind == "phi" and term.condition is not None:
        condition = term.condition
        for guard, _ in guards:
            if guard.node is not None and guard.node is condition.node:
                side = term.inner[0 if guard.holds == condition.holds else 1]
                return Term("same", term.value, (specialised(side, guards),))
    inner = tuple(specialised(each, guards) for each in term.inner)
    return term if all(a is b for a, b in zip(inner, term.inner, strict=True)) else replace(term, inner=inner)


def chain_of(scores: Term, weights: Term) -> set[Value]:
    """Every value between the first product and the second."""
    found = {term.value for tree in (scores, weights) for term in tree.walk()}
    for term in scores.walk():
        if term.kind == "shift" and term.other is not None:
            value = term.other
            while value not in found and value.args:
                found.add(value)
                value = value.args[0]
    return found


def _ranks(product: Product, final: Value, side: int, shapes: Shapes) -> Product:
    """What is known of one tensor's rank holds for the others of the same attention."""
    second = product_of(final, shapes)
    assert second is not None
    tensors = [*product.operands, second.operands[1 - side], product.value, second.operands[side]]
    ranks = [rank for rank in map(shapes.rank, tensors) if rank is not None]
    if MORE in product.out or MORE in second.out:
        for tensor in tensors:
            flat = "mm" in (product.value.op, final.op)
            if ranks and (flat or max(ranks) > 2) and shapes.rank(tensor) is None:
                shapes.learn(tensor, max(ranks))
    again = product_of(product.value, shapes)
    assert again is not None
    return again


def _scores(walker: Scores, weights: Term) -> Term | Unfit:
    """The chain of scores beneath all softmaxes of a chain of weights."""
    if weights.kind == "softmax":
        return walker.walk(weights.value.args[0])
    if weights.kind != "phi":
        return _scores(walker, weights.inner[0])
    one, two = (_scores(walker, each) for each in weights.inner)
    if isinstance(one, Term) and one is two:
        return one
    return joined(weights.value, one, two)


def layouts(term: Term, base: Letters, shapes: Shapes) -> Letters | None:
    """The letters of a chain's result, given those of its product: None where they cannot be said."""
    if term.kind == "product":
        return base
    inner = layouts(term.inner[0], base, shapes)
    if term.kind == "phi":
        return inner if inner == layouts(term.inner[1], base, shapes) else None
    if term.kind == "move":
        return moved(inner, term.value) if inner is not None else None
    if term.kind == "reshape":
        return _reshaped(term, inner, base, shapes)
    return inner


def _reshaped(term: Term, inner: Letters | None, base: Letters, shapes: Shapes) -> Letters | None:
    """A reshape that comes back to the product's shape, or that only folds leading axes."""
    product = next(each for each in term.walk() if each.product is not None)
    if any(each.kind == "move" for each in term.walk()):
        return None
    del inner
    return _back(shapes.of(product.value), shapes.of(term.value), base)


def _back(start: list[str] | None, end: list[str] | None, base: Letters) -> Letters | None:
    """The letters after a reshape: the first ones where it comes back to the same sizes."""
    if start is None or end is None:
        return None
    unequal = [pair for pair in zip(end, start, strict=False) if pair[0] != pair[1]]
    if len(end) == len(start):
        if not unequal or (len(unequal) == 1 and any(each.startswith("rest:") for each in unequal[0])):
            return base
    if end[-2:] == start[-2:]:
        return (MORE, *base[-2:])
    return None


def _same_layout(scores: Term, product: Product, shapes: Shapes) -> Letters:
    """The letters of the softmax's input, the same for every softmax."""
    found = layouts(scores, product.out, shapes)
    if found is None:
        raise Refuse("the scores are reshaped in a way whose axes cannot be followed")
    return found


def _axes(
    flow: Flow, shapes: Shapes, product: Product, scores: Term, weights: Term, layout: Letters,
    softmaxes: tuple[Value, ...], final: Value, side: int,
) -> Attention:  # fmt: skip
    key_letter = _softmax_letter(layout, softmaxes)
    key_side = next((at for at in (0, 1) if product.only(at) == [key_letter]), None)
    if key_side is None:
        raise Refuse("the softmax runs over an axis that is not one of the keys alone")
    query_letters = product.only(1 - key_side)
    value_product = product_of(final, shapes)
    assert value_product is not None
    seen = layouts_of_weights(weights, layout, shapes)
    if seen is None or len(seen) != len(value_product.letters[side]):
        raise Refuse("the weights are reshaped in a way whose axes cannot be followed")
    names = dict(zip(value_product.letters[side], seen, strict=True))
    contracted = value_product.contracted
    if len(contracted) != 1 or names.get(next(iter(contracted))) != key_letter:
        raise Refuse(
            "the second product does not sum over the axis of the softmax (linear or channel attention)"
        )
    values, out = _value_letters(value_product, side, names, query_letters)
    query_letter = query_letters[-1]
    rename = {key_letter: "s", query_letter: "l", next(iter(product.contracted)): "d"}
    batch = tuple(each for each in product.out if each not in (key_letter, query_letter))
    rename.update({each: f"{each}'" for each in batch if each in ("s", "l", "d", "e")})
    rename[OWN] = "e"
    return Attention(
        flow, shapes, final, product, scores, weights,
        q=Operand(product.operands[1 - key_side], _renamed(product.letters[1 - key_side], rename)),
        k=Operand(product.operands[key_side], _renamed(product.letters[key_side], rename)),
        v=Operand(value_product.operands[1 - side], _renamed(values, rename)),
        batch=_renamed(batch, rename), out=_renamed(out, rename), layout=_renamed(layout, rename),
        softmaxes=softmaxes,
    )  # fmt: skip


def _renamed(letters: Letters, names: dict[str, str]) -> Letters:
    return tuple(names.get(each, each) for each in letters)


def layouts_of_weights(term: Term, base: Letters, shapes: Shapes) -> Letters | None:
    """The letters of the weights that go into the second product."""
    if term.kind == "softmax":
        return base
    inner = layouts_of_weights(term.inner[0], base, shapes)
    if term.kind == "reshape":
        softmax = next(each for each in term.walk() if each.kind == "softmax")
        if any(each.kind == "move" for each in term.walk()):
            return None
        return _back(shapes.of(softmax.value), shapes.of(term.value), base)
    if inner is None:
        return None
    if term.kind == "phi":
        return inner if layouts_of_weights(term.inner[1], base, shapes) == inner else None
    return moved(inner, term.value) if term.kind == "move" else inner


def _softmax_letter(layout: Letters, softmaxes: tuple[Value, ...]) -> str:
    letters = set()
    for softmax in softmaxes:
        dim = softmax.get(1, "dim") or softmax.named.get("axis")
        if dim is None:
            raise Refuse(
                "softmax() is called without a dimension: PyTorch then guesses one",
                "say softmax(..., dim=-1) if the last one is meant",
            )
        at = position(layout, number(dim))
        if at is None:
            raise Refuse(
                "which axis the softmax runs over cannot be said: the number of dimensions is unknown"
            )
        letters.add(layout[at])
    if len(letters) != 1:
        raise Refuse("the branches take their softmax over different axes")
    return letters.pop()


def _value_letters(
    product: Product, side: int, names: dict[str, str], query_letters: list[str]
) -> tuple[Letters, Letters]:
    """The letters of the values and of the output, in the first product's letters; "e" is the values' own."""
    own = product.only(1 - side)
    if len(own) != 1:
        raise Refuse("the values have more than one axis of their own, or none")
    shared = dict(names)
    shared[own[0]] = OWN
    for letter in product.letters[1 - side]:
        shared.setdefault(letter, letter)
    values = tuple(shared[each] for each in product.letters[1 - side])
    out = tuple(shared[each] for each in product.out)
    if query_letters[-1] in values:
        raise Refuse("the values differ from query to query")
    if MORE in values or MORE in out:
        return values, out
    expected = {each for each in names.values() if each != names[next(iter(product.contracted))]} | {OWN}
    if set(out) != expected:
        raise Refuse("the second product sums over another axis too")
    return values, out


def _refuse_channels(found: Attention) -> None:
    """Softmax over channels is the same formula, of another shape: no kernel is made for it."""
    for value in found.flow.values:
        if value.op == "layer:Linear":
            found.shapes.of(value)
    dims = found.shapes.of(found.q.value)
    if dims is None or len(dims) != len(found.q.letters) or MORE in found.q.letters:
        return
    size = dict(zip(found.q.letters, dims, strict=True))
    over_positions = "positions:" in size["d"] or size["d"] in found.shapes.positions
    if over_positions or ("features:" in size["l"] and "features:" not in size["d"]):
        raise Refuse(
            "channel attention: the softmax runs over channels, and the products sum over positions",
            "leave it: there are few channels and many positions, so a fused kernel is slower",
        )
