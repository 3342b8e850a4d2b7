"""One attention, understood: its operands with named axes, its scale, masks, dropout, guards and escapes."""

import ast
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

from flashmore.upgrade.axes import (
    JOINT,
    OWN,
    Letters,
    Refuse,
    UnknownAxis,
    layouts,
    layouts_of_weights,
    renamed,
    softmax_letter,
    value_letters,
)
from flashmore.upgrade.budget import walk
from flashmore.upgrade.patterns.exclusions import refuse_channels, refuse_other_shifts, refuse_truth_values
from flashmore.upgrade.patterns.products import MORE, Product, product_of
from flashmore.upgrade.patterns.scores import Scores
from flashmore.upgrade.patterns.terms import Term, Unfit, joined, specialised
from flashmore.upgrade.patterns.weights import Weights
from flashmore.upgrade.patterns.zeros import check_zeros
from flashmore.upgrade.source.escape import escapes, excludes, fact, stripped
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.graph import Condition, Value
from flashmore.upgrade.source.shapes import Shapes
from flashmore.upgrade.source.written import WrittenSoftmax


@dataclass
class Operand:
    """A tensor that goes into the attention, and the letters of its axes."""

    value: Value
    letters: Letters


@dataclass
class Attention:
    """One attention.

    Letters: "l" queries, "s" keys, "d" channels of q and k, "e" channels of v, all others are batch axes, in
    the order of `batch`. Where one softmax runs over several axes of keys (`keys`), these and those of the
    queries (`rows`) are numbered.
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
    rows: Letters
    keys: Letters
    guards: list[tuple[Condition, str]] = field(default_factory=list)
    rank: int | None = None
    """The number of dimensions that a guard asks of tensors."""
    asked: tuple[list[Value], ...] = ()
    """These tensors, each with those of the same rank that it is made of."""
    products: tuple[Product, ...] = ()
    zeroed: bool = False
    """Whether rows whose keys are all hidden are set to zero after the softmax."""
    without_nans: bool = False
    """Whether they are set to zero where they would be NaN."""

    @property
    def chain(self) -> set[Value]:
        """Every value between the first product and the second."""
        return chain_of(self.scores, self.weights)

    @cached_property
    def decided(self) -> dict[ast.expr, bool]:
        """The tests whose answer the guards tell, without each `not` in front of them."""
        tests = self.flow.tests
        held = {fact(each, tests) for each, _ in self.guards}
        asked = [
            self.flow.condition(node.test, holds)
            for node in walk(self.flow.function) if isinstance(node, (ast.If, ast.IfExp))
            for holds in (True, False)
        ]  # fmt: skip
        known = (each for each in (*asked, *(guard for guard, _ in self.guards)) if fact(each, tests) in held)
        return {each.node: each.holds for each in known if each.node is not None}

    def live(self, node: ast.If | ast.IfExp) -> bool | None:
        """Which branch runs where the guards hold; None where they do not tell."""
        test, negated = stripped(node.test)
        return None if test not in self.decided else self.decided[test] != negated


def candidates(flow: Flow, shapes: Shapes) -> Iterator[tuple[Value, int, Term | Unfit]]:
    """Every product one of whose operands comes from a softmax, with the side and the chain."""
    weights = Weights(flow.module)
    for value in flow.values:
        product = product_of(value, shapes)
        if product is None:
            continue
        for side in (0, 1):
            chain = weights.walk(product.operands[side])
            if chain is not None:
                yield value, side, chain


def choices(flow: Flow, shapes: Shapes, weights: Term) -> list[tuple[Condition, str]]:
    """The branches to which a rewriting may be limited, where it cannot be one for all of them.

    First those that decide about the product or the softmax, and of each test the answer no.
    """
    scores = _scores(Scores(flow.module, shapes), weights)
    trees = [weights, scores] if isinstance(scores, Term) else [weights]
    found: list[tuple[bool, Condition]] = []
    for term in (each for tree in trees for each in tree.walk()):
        condition = term.condition
        if term.kind != "phi" or condition is None or condition.node is None:
            continue
        roots = [{t.value for t in side.walk() if t.kind in ("product", "softmax")} for side in term.inner]
        for each in (condition, condition.opposite()):
            if not any(fact(each, flow.tests) == fact(other, flow.tests) for _, other in found):
                found.append((roots[0] == roots[1], each))
    found.sort(key=lambda each: (each[0], each[1].holds))
    return [(condition, "the attention differs") for _, condition in found]


def attention(
    flow: Flow, shapes: Shapes, final: Value, side: int, weights: Term,
    chosen: tuple[tuple[Condition, str], ...] = (),
) -> Attention:  # fmt: skip
    """What a value product computes, under the conditions that are chosen.

    Raises:
        Refuse: it is no attention, or one that must be left alone.
    """
    try:
        return _attention(flow, shapes, final, side, weights, chosen)
    except UnknownAxis as unknown:
        for rank in (unknown.dim + 1, unknown.dim + 2):  # the keys are the last axis, or the one before it
            if rank < 2:  # products of vectors
                continue
            with suppress(Refuse):
                return _attention(flow, Shapes(flow), final, side, weights, chosen, rank)
        raise


def _attention(
    flow: Flow, shapes: Shapes, final: Value, side: int, weights: Term,
    chosen: tuple[tuple[Condition, str], ...], rank: int | None = None,
) -> Attention:  # fmt: skip
    """The attention where its tensors have so many dimensions, if that is what its axes are counted from."""
    weights = specialised(weights, chosen, flow.tests)
    softmaxes = tuple(term.value for term in weights.walk() if term.kind == "softmax")
    scores = _scores(Scores(flow.module, shapes), weights)
    if isinstance(scores, Unfit):
        raise Refuse(scores.reason, scores.advice)
    scores = specialised(scores, chosen, flow.tests)
    product, asked = _ranks(_one_product(scores), final, side, shapes, rank)
    guards = [
        *chosen,
        *(guard for tree in (scores, weights) for term in tree.walk() for guard in term.guards),
    ]
    around = tuple(
        each
        for each in softmaxes[0].conditions
        if all(any(each.same(other) for other in softmax.conditions) for softmax in softmaxes[1:])
    )
    held = [each for each in (*final.conditions, *around) if each.node is not None]
    facts = {fact(each, flow.tests) for each in (*(each for each, _ in guards), *held)}
    if any(fact(each.opposite(), flow.tests) in facts for each, _ in guards) or any(
        excludes(facts, each, flow.tests) for each in held
    ):
        raise Refuse(guards[0][1])
    guards = escapes(chain_of(scores, weights), final, around, guards, flow.tests)
    scores, weights = (specialised(tree, guards, flow.tests) for tree in (scores, weights))
    products = {each.value: each for each in scores.products()}
    layout = _same_layout(scores, product, shapes)
    refuse_other_shifts(scores, product, softmaxes, shapes)
    found = _axes(flow, shapes, product, scores, weights, layout, softmaxes, final, side)
    found.guards = [(_first_asked(condition, flow), reason) for condition, reason in guards]
    found.products = tuple(products.values())
    found.rank, found.asked = rank, asked
    refuse_channels(found)
    refuse_truth_values(found)
    check_zeros(found)
    return found


def _first_asked(condition: Condition, flow: Flow) -> Condition:
    """The first test of a function that is true exactly where a condition is."""
    asked = (
        Condition(each.node, each.holds, node)
        for node in walk(flow.function)
        if isinstance(node, ast.If)
        for whole in [flow.condition(node.test, True)]
        for each in (whole, whole.opposite())
        if fact(each, flow.tests) == fact(condition, flow.tests)
    )
    return min(asked, key=lambda each: each.node.lineno if each.node is not None else 0, default=condition)


def _one_product(scores: Term) -> Product:
    """The product of queries and keys that all branches start from."""
    products = list(scores.products())
    one = products[0]
    if any(
        (each.operands, each.letters, each.out) != (one.operands, one.letters, one.out) for each in products
    ):
        raise Refuse("the branches start from different products of queries and keys")
    if any(each.value.inner for each in products):
        raise Refuse(
            "the product of queries and keys is computed inside a helper", "move it into this function"
        )
    return one


def values_of(flow: Flow, shapes: Shapes, final: Value, weights: Term) -> set[Value]:
    """The values of an attention from the first product to the second; empty if a helper holds both."""
    scores = _scores(Scores(flow.module, shapes), weights)
    if isinstance(scores, Unfit):
        return set()
    products = {id(each.value.node) for each in scores.products()} | {id(final.node)}
    return chain_of(scores, weights) | {final} if len(products) > 1 or not final.inner else set()


def chain_of(scores: Term, weights: Term) -> set[Value]:
    """Every value between the first product and the second."""
    found = {term.value for tree in (scores, weights) for term in tree.walk()}
    for value in [*found]:
        if isinstance(value.detail, WrittenSoftmax):
            found.update(value.detail.parts)
    for term in (*scores.walk(), *weights.walk()):
        if term.kind in ("shift", "nans") and term.other is not None:
            value = term.other
            while value not in found and value.args:
                found.add(value)
                value = value.args[0]
    return found


def _ranks(
    product: Product, final: Value, side: int, shapes: Shapes, rank: int | None
) -> tuple[Product, tuple[list[Value], ...]]:
    """What is known of one tensor's rank holds for the others of the same attention.

    Where a guard asks for a rank, also the tensors that it has to ask.
    """
    second = product_of(final, shapes)
    assert second is not None
    tensors = [*product.operands, second.operands[1 - side], product.value, second.operands[side]]
    asked = []
    for tensor in tensors[:3]:
        if rank is not None and shapes.rank(tensor) is None:
            asked.append(shapes.of_same_rank(tensor))
            shapes.learn(asked[-1][-1], rank)
    ranks = [known for known in map(shapes.rank, tensors) if known is not None]
    if MORE in product.out or MORE in second.out:
        for tensor in tensors:
            flat = "mm" in (product.value.op, final.op)
            if ranks and (flat or max(ranks) > 2) and shapes.rank(tensor) is None:
                shapes.learn(tensor, max(ranks))
    again = product_of(product.value, shapes)
    assert again is not None
    return again, tuple(asked)


def _scores(walker: Scores, weights: Term) -> Term | Unfit:
    """The chain of scores beneath all softmaxes of a chain of weights."""
    return _scores_beneath(walker, weights, {})


def _scores_beneath(walker: Scores, weights: Term, known: dict[Term, Term | Unfit]) -> Term | Unfit:
    if weights.kind == "softmax":
        return walker.walk(weights.value.args[0])
    if weights not in known:
        inner = [_scores_beneath(walker, each, known) for each in weights.inner]
        known[weights] = inner[0]
        if weights.kind == "phi" and not (isinstance(inner[0], Term) and inner[0] is inner[1]):
            known[weights] = joined(weights.value, *inner)
    return known[weights]


def _same_layout(scores: Term, product: Product, shapes: Shapes) -> Letters:
    """The letters of the softmax's input, the same for every softmax."""
    found = layouts(scores, product.out, shapes)
    if found is None:
        raise Refuse(
            "it is unclear which axes the scores have after they are reshaped",
            "unpack the sizes to names, and reshape with these",
        )
    return found


def _axes(
    flow: Flow, shapes: Shapes, product: Product, scores: Term, weights: Term, layout: Letters,
    softmaxes: tuple[Value, ...], final: Value, side: int,
) -> Attention:  # fmt: skip
    keys = tuple(softmax_letter(layout, softmaxes).split(JOINT))
    key_side = next((at for at in (0, 1) if sorted(product.only(at)) == sorted(keys)), None)
    if key_side is None:
        raise Refuse("the softmax is not over the axis of the keys")
    query_letters = product.only(1 - key_side)
    value_product = product_of(final, shapes)
    assert value_product is not None
    seen = layouts_of_weights(weights, product.value, product.out, layout, shapes)
    if seen is None or len(seen) != len(value_product.letters[side]):
        raise Refuse(
            "it is unclear which axes the weights have after they are reshaped",
            "unpack the sizes to names, and reshape with these",
        )
    names = dict(zip(value_product.letters[side], seen, strict=True))
    if {names.get(each) for each in value_product.contracted} != {*keys}:
        raise Refuse(
            "the second product does not sum over the axis of the softmax (linear or channel attention)"
        )
    rows = tuple(query_letters if len(keys) > 1 else query_letters[-1:])
    values, out = value_letters(value_product, side, names, rows)
    rename = {next(iter(product.contracted)): "d"} | _numbered("l", rows) | _numbered("s", keys)
    batch = tuple(each for each in product.out if each not in (*keys, *rows))
    taken = {"s", "l", "d", "e", *rename.values()}
    rename.update({each: f"{each}'" for each in batch if each in taken})
    rename[OWN] = "e"
    return Attention(
        flow, shapes, final, product, scores, weights,
        q=Operand(product.operands[1 - key_side], renamed(product.letters[1 - key_side], rename)),
        k=Operand(product.operands[key_side], renamed(product.letters[key_side], rename)),
        v=Operand(value_product.operands[1 - side], renamed(values, rename)),
        batch=renamed(batch, rename), out=renamed(out, rename), layout=renamed(layout, rename),
        softmaxes=softmaxes, rows=renamed(rows, rename), keys=renamed(keys, rename),
    )  # fmt: skip


def _numbered(name: str, letters: Letters) -> dict[str, str]:
    """A name for each letter: the one itself for one alone."""
    return {each: f"{name}{index}" if len(letters) > 1 else name for index, each in enumerate(letters)}
