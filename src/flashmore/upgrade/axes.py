"""Axes with names: which letter each axis of scores, weights, values and output has."""

from flashmore.upgrade.patterns.products import MORE, Product, moved, position
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.shapes import Shapes

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


def layouts(term: Term, base: Letters, shapes: Shapes) -> Letters | None:
    """The letters of a chain's result, given those of its product: None where they cannot be said."""
    return _layouts(term, "product", base, shapes, {})


def _layouts(
    term: Term, start: str, base: Letters, shapes: Shapes, known: dict[Term, Letters | None]
) -> Letters | None:
    """The letters of a chain's result, given those of the operation that it starts from, by its kind."""
    if term.kind == start:
        return base
    if term not in known:
        inner = [_layouts(each, start, base, shapes, known) for each in term.inner]
        known[term] = inner[0]
        if term.kind == "phi":
            known[term] = inner[0] if inner[0] == inner[1] else None
        elif term.kind == "move":
            known[term] = moved(inner[0], term.value) if inner[0] is not None else None
        elif term.kind == "reshape":
            known[term] = _reshaped(term, start, base, shapes)
    return known[term]


def _reshaped(term: Term, start: str, base: Letters, shapes: Shapes) -> Letters | None:
    """A reshape that comes back to the shape at the start, or that only folds leading axes."""
    first = next(each for each in term.walk() if each.kind == start)
    if any(each.kind == "move" for each in term.walk()):
        return None
    return _back(shapes.of(first.value), shapes.of(term.value), base)


def _back(start: list[str] | None, end: list[str] | None, base: Letters) -> Letters | None:
    """The letters after a reshape: the first ones where it comes back to the same sizes."""
    if start is None or end is None:
        return None
    unequal = [pair for pair in zip(end, start, strict=False) if pair[0] != pair[1]]
    inferred = len(unequal) == 1 and any(each.startswith("rest:") for each in unequal[0])
    if len(end) == len(start) and (not unequal or inferred):
        return base
    if end[-2:] == start[-2:]:
        return (MORE, *base[-2:])
    return None


def layouts_of_weights(term: Term, product: Product, base: Letters, shapes: Shapes) -> Letters | None:
    """The letters of the weights that go into the second product; the first one's, if it is shaped so."""
    if MORE in base and MORE not in product.out:
        return _back(shapes.of(product.value), shapes.of(term.value), product.out)
    return _layouts(term, "softmax", base, shapes, {})


def softmax_letter(layout: Letters, softmaxes: tuple[Value, ...]) -> str:
    """The letter of the axis that all softmaxes run over."""
    letters = set()
    for softmax in softmaxes:
        dim = softmax.get(1, "dim") or softmax.named.get("axis")
        if dim is None:
            raise Refuse(
                "softmax() is called without dim, so PyTorch guesses the dimension",
                "write softmax(..., dim=-1) if the last dimension is meant",
            )
        at = position(layout, number(dim))
        if at is None:
            raise Refuse(
                "the axis of the softmax is counted from the front, but the scores' dimensions are unclear",
                "count from the end, as in dim=-1",
            )
        letters.add(layout[at])
    if len(letters) != 1:
        raise Refuse("the branches take the softmax over different axes")
    return letters.pop()


def value_letters(
    product: Product, side: int, names: dict[str, str], query_letters: list[str]
) -> tuple[Letters, Letters]:
    """The letters of the values and of the output, in the first product's letters; "e" is the values' own."""
    own = product.only(1 - side)
    if len(own) != 1:
        raise Refuse("the values have no axis of their own beside the keys, or several")
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
        raise Refuse("the second product also sums over another axis")
    return values, out


def renamed(letters: Letters, names: dict[str, str]) -> Letters:
    """Letters under other names."""
    return tuple(names.get(each, each) for each in letters)
