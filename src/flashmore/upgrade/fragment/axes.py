"""The axes of what is cut out: which letter of a test stands for each dimension of an input."""

import ast

from flashmore.upgrade.axes import JOINT, Letters, Refuse, layouts, layouts_of_weights
from flashmore.upgrade.patterns.products import MORE
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.source.attributes import Attribute, kind_of
from flashmore.upgrade.source.graph import Value

_BATCH = ("B", "H", "G", "P", "Q", "R")
_ROWS, _KEYS = "IJ", "XY"
"""Of queries and keys with two axes each."""


class Axes:
    """The letters of one attention's plan, and those of a test.

    Args:
        found: the attention.
    """

    def __init__(self, found: Attention) -> None:
        self.all = found
        batch = [each for each in found.batch if each != MORE]
        self.letter = {each: _BATCH[index] for index, each in enumerate(batch)}
        rows = dict(
            zip(found.rows, _ROWS if len(found.rows) > 1 else "1" if self._is_one() else "L", strict=False)
        )
        keys = dict(zip(found.keys, _KEYS if len(found.keys) > 1 else "S", strict=False))
        if self._square():
            keys = dict(zip(found.keys, rows.values(), strict=True))
        self.letter |= rows | keys | {"d": "D", "e": "E"}
        self.split: dict[str, str] = {}
        """A letter of the batch that a reshape takes apart, as a product of two."""

    def _square(self) -> bool:
        """Whether there are as many keys as queries, by the shapes."""
        q, k = self.all.shapes.of(self.all.q.value), self.all.shapes.of(self.all.k.value)
        if self.all.q.value is self.all.k.value:
            return True
        if q is None or k is None or len(q) != len(self.all.q.letters) or len(k) != len(self.all.k.letters):
            return False
        rows = [q[self.all.q.letters.index(each)] for each in self.all.rows]
        return rows == [k[self.all.k.letters.index(each)] for each in self.all.keys]

    def _is_one(self) -> bool:
        """Whether there is surely one query."""
        q = self.all.shapes.of(self.all.q.value)
        return q is not None and len(q) == len(self.all.q.letters) and q[self.all.q.letters.index("l")] == "1"

    def of(self, letters: Letters) -> tuple[str, ...]:
        """Letters of the plan as axes of a test."""
        result: list[str] = []
        for each in letters:
            joint = JOINT.join(self.letter[part] for part in each.split(JOINT) if part != MORE)
            result.extend([joint] if joint else ["B", "H"])
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
        found = self._letters(term)
        if found is None:
            raise Refuse("axes that cannot be analysed")
        return found

    def _letters(self, term: Term) -> Letters | None:
        out, shapes = self._out(), self.all.shapes
        if all(each.kind != "softmax" for each in term.walk()):
            return layouts(term, out, shapes)
        return layouts_of_weights(term, self.all.product.value, out, self.all.layout, shapes)

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
        letters = self._letters(term)
        if letters is not None and MORE not in letters:
            return self.of(letters)
        if len(dims) != len(base) + 1:
            return None
        self.split[out[0]] = "V*W"
        return ("V", "W", *out[1:])
