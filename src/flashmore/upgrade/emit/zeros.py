"""Zeros in the place of the product of queries and keys, where other lines still need what is made of it."""

import ast

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.emit.words import atom, is_atom
from flashmore.upgrade.emit.writer import Writer
from flashmore.upgrade.patterns.products import Product
from flashmore.upgrade.site import NAN_ROWS, Edit
from flashmore.upgrade.source.nodes import operand

_ZEROS = "# zeros with the shape of the scores: the call below computes the product"


class Zeros(Writer):
    """Writes attentions whose first product becomes zeros, of the same shape and dtype."""

    def _rows_of_nan(self) -> None:
        if not self.found.without_nans:
            self.result.assumptions.append(NAN_ROWS)

    def _zero_product(self) -> None:
        for product in self.found.products:
            self._zero(product)
        statements = dict.fromkeys(product.value.statement for product in self.found.products)
        self.result.setup += [(each, [_ZEROS]) for each in statements if each is not None]

    def _zero(self, product: Product) -> None:
        node = product.value.node
        letter = next(iter(product.contracted))
        for side in (0, 1):
            found = operand(self.flow, node, product.operands[side])
            if found is None:
                raise Refuse("queries and keys are not operands of their own in the product")
            letters = product.letters[side]
            behind = len(letters) - 1 - letters.index(letter)
            index = f"[..., :0{', :' * behind}]"
            end = self.text.span(found)[1]
            if not is_atom(found) and self.text.source[end : end + 1] == ")":
                self._insert(end + 1, index)
            else:
                self._replace(found, atom(self.words.of(found)) + index)
        if product.added is None:
            self._detach(node)

    def _detach(self, product: ast.AST | None) -> None:
        """Zeros without a gradient: a mask that requires one rules out the fused kernels."""
        assert product is not None
        start, end = self.text.span(product)
        if not isinstance(product, ast.BinOp):
            self._insert(end, ".detach()")
        elif self.text.source[start - 1 : start] == "(" and self.text.source[end : end + 1] == ")":
            self._insert(end + 1, ".detach()")
        else:
            self._insert(start, "(")
            self._insert(end, ").detach()")

    def _insert(self, at: int, text: str) -> None:
        self.result.edits.append(Edit(at, at, text))
