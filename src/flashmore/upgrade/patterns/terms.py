"""A chain of operations on scores or weights, as a tree: branches join, loops repeat."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from flashmore.upgrade.budget import step
from flashmore.upgrade.patterns.products import Product
from flashmore.upgrade.source.escape import fact
from flashmore.upgrade.source.graph import Condition, Value


@dataclass(frozen=True, eq=False)
class Unfit:
    """Why a value is no chain that can be rewritten.

    `fatal` says that not even a branch may be rewritten; `product` that a product of queries and keys lies
    beneath.
    """

    reason: str
    value: Value
    fatal: bool = False
    product: bool = False
    advice: str = ""


@dataclass(frozen=True, eq=False)
class Term:
    """One operation of a chain.

    Args:
        kind: "product", "scale", "add", "fill", "cast", "move", "reshape", "shift", "same", "softmax",
            "dropout", "zeroed", "phi", "loop", "carried".
        value: what it makes.
        inner: what it is applied to; of "phi" both sides, of "loop" the start and one round.
        other: the scale, what is added, the mask.
        detail: of "scale" "number" or "learned" and "mul" or "div"; of "fill" the kind, the fill, and whether
            the mask says what is kept; of "add" the sign.
        condition: of "phi", the test under which its first side holds.
        product: of "product", its letters.
        guards: conditions without which the chain does something that cannot be rewritten, with the reason.
    """

    kind: str
    value: Value
    inner: tuple["Term", ...] = ()
    other: Value | None = None
    detail: tuple[object, ...] = ()
    condition: Condition | None = None
    product: Product | None = None
    guards: tuple[tuple[Condition, str], ...] = ()

    def walk(self) -> Iterator["Term"]:
        """Itself and all that it is made of, each once."""
        seen: set[int] = set()
        stack = [self]
        while stack:
            term = stack.pop()
            step()
            if id(term) not in seen:
                seen.add(id(term))
                yield term
                stack.extend(term.inner)

    def products(self) -> list[Product]:
        """The products at the bottom."""
        return [term.product for term in self.walk() if term.product is not None]


def joined(value: Value, one: Term | Unfit, two: Term | Unfit) -> Term | Unfit:
    """Two branches as one chain: where only one can be rewritten, a guard says which."""
    condition = value.detail
    assert isinstance(condition, Condition)
    if isinstance(one, Term) and isinstance(two, Term):
        if one.value is two.value:
            return one
        return Term("phi", value, (one, two), condition=condition)
    if isinstance(one, Unfit) and isinstance(two, Unfit):
        return one if one.product or not two.product else two
    unfit, fit = (one, two) if isinstance(one, Unfit) else (two, one)
    assert isinstance(unfit, Unfit)
    assert isinstance(fit, Term)
    if unfit.fatal:
        return unfit
    if unfit.value.op == "missing":
        return fit
    guard = condition if fit is one else condition.opposite()
    return Term("same", value, (fit,), guards=((guard, unfit.reason),))


def specialised(term: Term, guards: Sequence[tuple[Condition, str]], tests: dict[int, Value]) -> Term:
    """A chain as it is under its guards: branches that they rule out fall away."""
    held = {fact(each, tests) for each, _ in guards if each.node is not None}
    return _specialised(term, held, tests, {}) if held else term


def _specialised(
    term: Term, held: set[tuple[str, bool]], tests: dict[int, Value], known: dict[Term, Term]
) -> Term:
    if term in known:
        return known[term]
    known[term] = term
    condition = term.condition
    if term.kind == "phi" and condition is not None and condition.node is not None:
        step()
        for side, each in zip(term.inner, (condition, condition.opposite()), strict=True):
            if fact(each, tests) in held:
                known[term] = Term("same", term.value, (_specialised(side, held, tests, known),))
                return known[term]
    inner = tuple(_specialised(each, held, tests, known) for each in term.inner)
    if any(a is not b for a, b in zip(inner, term.inner, strict=True)):
        known[term] = replace(term, inner=inner)
    return known[term]
