"""The axes of what is cut out: which letter of a test stands for each dimension of an input."""

import ast

from flashmore.upgrade.axes import Letters, Refuse, layouts
from flashmore.upgrade.patterns.products import MORE
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.source.attributes import Attribute, kind_of
from flashmore.upgrade.source.graph import Value

_BATCH = ("B", "H", "G", "P", "Q", "R")


class Axes:
    """The letters of one attention's plan, and those of a test.

    Args:
        found: the attention.
    """

    def __init__(self, found: Attention) -> None:
        self.all = found
        batch = [each for each in found.batch if each != MORE]
        self.letter = {each: _BATCH[index] for index, each in enumerate(batch)}
        self.letter |= {"l": "L", "s": "L" if self._square() else "S", "d": "D", "e": "E"}
        self.split: dict[str, str] = {}
        """A letter of the batch that a reshape takes apart, as a product of two."""

    def _square(self) -> bool:
        """Whether there are as many keys as queries, by the shapes."""
        q, k = self.all.shapes.of(self.all.q.value), self.all.shapes.of(self.all.k.value)
        if self.all.q.value is self.all.k.value:
            return True
        if q is None or k is None or len(q) != len(self.all.q.letters) or len(k) != len(self.all.k.letters):
            return False
        return q[self.all.q.letters.index("l")] == k[self.all.k.letters.index("s")]

    def of(self, letters: Letters) -> tuple[str, ...]:
        """Letters of the plan as axes of a test."""
        result: list[str] = []
        for each in letters:
            result.extend(["B", "H"] if each == MORE else [self.letter[each]])
        return tuple(result)

    def of_learned(self, value: Value) -> tuple[str, ...]:
        """`(H, 1, 1)` where a parameter is stored so, a single number otherwise."""
        stack, text = [value], ""
        while stack:
            each = stack.pop()
            if each.op == "selfattr" and isinstance(each.detail, Attribute):
                kind = kind_of(each.detail, self.all.flow.module)
                text += ast.unparse(kind.expression) if kind.expression is not None else ""
            stack.extend(each.inputs())
        if "1, 1" in text and "H" in self.letter.values() and self.all.q.letters != ():
            return ("H", "1", "1")
        return ()

    def broadcast(self, term: Term, other: Value | None) -> tuple[str, ...]:
        """The axes of what is combined with the scores: as many as it has, from the right."""
        inner = term.inner[0]
        seen = self._viewed(inner)
        full = seen if seen is not None else self.of(self._layout(inner))
        dims = self.all.shapes.of(other) if other is not None else None
        if dims is None or len(dims) > len(full):
            return full
        own = full[len(full) - len(dims) :] if dims else ()
        return tuple("1" if size == "1" else axis for axis, size in zip(own, dims, strict=True))

    def of_out(self) -> tuple[str, ...]:
        """The axes of the first product."""
        return self.of(self._out())

    def _layout(self, term: Term) -> Letters:
        found = layouts(term, self._out(), self.all.shapes)
        if found is None:
            raise Refuse("axes that cannot be analysed")
        return found

    def _out(self) -> Letters:
        """The letters of the product's result, in the plan's names."""
        raw = self.all.product.out
        q, k = self.all.q.letters, self.all.k.letters
        sides = self.all.product.letters
        names: dict[str, str] = {}
        for side, letters in zip(
            sides, (q, k) if self.all.product.operands[0] is self.all.q.value else (k, q), strict=True
        ):
            if len(side) != len(letters):
                raise Refuse("axes that cannot be analysed")
            for one, two in zip(side, letters, strict=True):
                names.setdefault(one, two)
        return tuple(names[each] for each in raw)

    def _viewed(self, term: Term) -> tuple[str, ...] | None:
        """The axes of scores that were reshaped."""
        while term.inner:
            if term.kind in ("reshape", "move"):
                return self.of_view(term)
            term = term.inner[0]
        return None

    def of_view(self, term: Term) -> tuple[str, ...] | None:
        """`view(B // W, W, H, N, N)` of (B, H, N, N): the batch is a product of two letters."""
        if term.kind != "reshape" or term.value.inner:
            return None
        shapes = self.all.shapes
        dims, base = shapes.of(term.value), shapes.of(self.all.product.value)
        out = self.of(self._out())
        if dims is None or base is None or len(base) != len(out):
            return None
        if len(dims) == len(base):
            return tuple(self.split.get(axis, axis) for axis in out)
        if len(dims) != len(base) + 1:
            return None
        self.split[out[0]] = "V*W"
        return ("V", "W", *out[1:])
