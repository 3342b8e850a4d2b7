"""Axes with names: which letter each axis of scores, weights, values and output has."""

from flashmore.upgrade.patterns.products import MORE, Product, moved, position
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.shapes import Shapes
from flashmore.upgrade.source.sizes import product as product_of_sizes

Letters = tuple[str, ...]
JOINT = "*"
"""Between the letters of several axes that a reshape made one."""
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


class UnknownAxis(Refuse):
    """An axis that is counted from the front, of scores whose dimensions are unclear.

    Args:
        dim: the axis.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(
            "the axis of the softmax is counted from the front, but the scores' dimensions are unclear",
            "count from the end, as in dim=-1",
        )
        self.dim = dim


def layouts(term: Term, base: Letters, shapes: Shapes) -> Letters | None:
    """The letters of a chain's result, given those of its product: None where they cannot be said."""
    product = next(each.value for each in term.walk() if each.kind == "product")
    return _layouts(term, "product", base, _sizes(product, base, shapes), shapes, {})


def _sizes(product: Value, out: Letters, shapes: Shapes) -> dict[str, str]:
    """The size that each letter stands for; empty texts where these are unknown."""
    dims = shapes.of(product)
    return dict(
        zip(out, dims if dims is not None and len(dims) == len(out) else [""] * len(out), strict=True)
    )


def _layouts(
    term: Term, start: str, base: Letters, sizes: dict[str, str], shapes: Shapes,
    known: dict[Term, Letters | None],
) -> Letters | None:  # fmt: skip
    """The letters of a chain's result, given those of the operation that it starts from, by its kind."""
    if term.kind == start:
        return base
    if term not in known:
        inner = [_layouts(each, start, base, sizes, shapes, known) for each in term.inner]
        known[term] = inner[0]
        if term.kind == "phi":
            known[term] = inner[0] if inner[0] == inner[1] else None
        elif term.kind == "move":
            known[term] = moved(inner[0], term.value) if inner[0] is not None else None
        elif term.kind == "reshape":
            known[term] = (
                _of_ones(inner[0], tuple(sizes), term.value, shapes)
                or _reshaped(term, start, base, shapes)
                or _joined(inner[0], sizes, term.value, shapes)
            )
    return known[term]


def _reshaped(term: Term, start: str, base: Letters, shapes: Shapes) -> Letters | None:
    """A reshape that comes back to the shape at the start, or that only folds leading axes."""
    first = next(each for each in term.walk() if each.kind == start)
    if any(each.kind == "move" for each in term.walk()):
        return None
    return _back(shapes.of(first.value), shapes.of(term.value), base)


def _of_ones(inner: Letters | None, every: Letters, value: Value, shapes: Shapes) -> Letters | None:
    """The letters after a reshape that only adds or removes axes of length 1, which are all alike."""
    before, after = shapes.of(value.args[0]), shapes.of(value)
    if inner is None or before is None or after is None or len(before) != len(inner):
        return None
    if any(each == MORE or JOINT in each for each in inner):
        return None
    longer = [each for each, size in zip(inner, before, strict=True) if size != "1"]
    ones = [each for each in dict.fromkeys((*inner, *every)) if each not in longer]
    start, end = ([each for each in sizes if each != "1"] for sizes in (before, after))
    if not _alike(start, end) or len(after) - len(end) > len(ones):
        return None
    left = {True: iter(ones), False: iter(longer)}
    return tuple(next(left[size == "1"]) for size in after)


def _joined(inner: Letters | None, sizes: dict[str, str], value: Value, shapes: Shapes) -> Letters | None:
    """The letters after a reshape that makes adjacent axes one, or takes them apart again."""
    before, after = shapes.of(value.args[0]), shapes.of(value)
    if inner is None or before is None or after is None or len(before) != len(inner) or MORE in inner:
        return None
    parts = tuple(part for each in inner for part in each.split(JOINT))
    if parts != inner:
        return parts if _alike([sizes[each] for each in parts], after) else None
    for first in range(len(after) if len(after) < len(inner) else 0):
        end = first + len(inner) - len(after) + 1
        if _alike([*before[:first], product_of_sizes(before[first:end]), *before[end:]], after):
            return (*inner[:first], JOINT.join(inner[first:end]), *inner[end:])
    return None


def _alike(start: list[str], end: list[str]) -> bool:
    """Whether a reshape gives the same sizes, of which one may be inferred."""
    unequal = [pair for pair in zip(end, start, strict=False) if pair[0] != pair[1]]
    inferred = len(unequal) == 1 and any(each.startswith("rest:") for each in unequal[0])
    return len(end) == len(start) and (not unequal or inferred)


def _back(start: list[str] | None, end: list[str] | None, base: Letters) -> Letters | None:
    """The letters after a reshape: the first ones where it comes back to the same sizes."""
    if start is None or end is None:
        return None
    if _alike(start, end):
        return base
    if end[-2:] == start[-2:]:
        return (MORE, *base[-2:])
    return None


def layouts_of_weights(
    term: Term, product: Value, out: Letters, base: Letters, shapes: Shapes
) -> Letters | None:
    """The letters of weights: those of the first product, `out`, if they are shaped like it.

    Args:
        term: the weights.
        product: the first product.
        out: its letters.
        base: those of the softmax.
        shapes: see `Shapes`.
    """
    if MORE in base and MORE not in out:
        if any(each.kind == "move" for each in term.walk()):
            return None
        return _back(shapes.of(product), shapes.of(term.value), out)
    return _layouts(term, "softmax", base, _sizes(product, out, shapes), shapes, {})


def softmax_letter(layout: Letters, softmaxes: tuple[Value, ...]) -> str:
    """The letter of the axis that all softmaxes run over."""
    letters = set()
    for softmax in softmaxes:
        dim = softmax.get(1, "dim") or softmax.named.get("axis")
        if dim is None and len(layout) == 2 and MORE not in layout:
            letters.add(layout[1])  # of two dimensions, PyTorch takes the last
            continue
        if dim is None:
            raise Refuse(
                "softmax() is called without dim, so PyTorch guesses the dimension",
                "write softmax(..., dim=-1) if the last dimension is meant",
            )
        at = position(layout, number(dim))
        if at is None:
            asked = number(dim)
            raise UnknownAxis(asked if isinstance(asked, int) else -1)
        letters.add(layout[at])
    if len(letters) != 1:
        raise Refuse("the branches take the softmax over different axes")
    return letters.pop()


def value_letters(
    product: Product, side: int, names: dict[str, str], rows: Letters
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
    if set(rows) & set(values):
        raise Refuse("the values differ from query to query")
    if MORE in values or MORE in out:
        return values, out
    if set(out) != {*names.values(), OWN} - {names[each] for each in product.contracted}:
        raise Refuse("the second product also sums over another axis")
    return values, out


def renamed(letters: Letters, names: dict[str, str]) -> Letters:
    """Letters under other names."""
    parts = (each.split(JOINT) for each in letters)
    return tuple(JOINT.join(names.get(each, each) for each in one) for one in parts)
