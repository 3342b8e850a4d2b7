"""Queries, keys and values as the arguments of a call, in the order of dimensions that it needs."""

import ast

from flashmore.upgrade.axes import Letters, Refuse
from flashmore.upgrade.budget import walk
from flashmore.upgrade.emit.words import Words, atom, fresh, reordered
from flashmore.upgrade.patterns.products import MORE, moved
from flashmore.upgrade.plan import Attention, Operand
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.nodes import Stability, operand
from flashmore.upgrade.source.operations import MOVES


class Operands:
    """The operands of one attention."""

    def __init__(self, found: Attention, words: Words) -> None:
        self.found = found
        self.words = words
        self.flow = found.flow
        self.stability = Stability(found.flow, found.decided)
        self.at = _statement(found.final)
        self.hoisted: list[tuple[str, ast.expr]] = []
        self.taken = {each.id for each in walk(self.flow.function) if isinstance(each, ast.Name)}
        self.taken |= {each.arg for each in walk(self.flow.function) if isinstance(each, ast.arg)}
        self.emitted: list[ast.expr] = []

    def read(self, node: ast.expr | None, what: str) -> str:
        """The text of an expression that is read again where the call stands."""
        if node is None:
            raise Refuse(f"{what} is computed inside a helper", "move it into this function")
        if not self.stability.holds(node, self.at):
            raise Refuse(f"{what} changes before the values are multiplied")
        self.emitted.append(node)
        return self.words.flat(node)

    def peeled(self, which: Operand, owner: Value) -> tuple[ast.expr, Letters]:
        """An operand's expression without the transpositions that stand in it, and its letters."""
        node = operand(self.flow, owner.node, which.value)
        if node is None:
            raise Refuse(
                "queries and keys are not operands of their own in the product", "assign both to names first"
            )
        value, letters = which.value, which.letters
        while (inner := _before(value, letters)) is not None:
            found = operand(self.flow, node, value.args[0])
            if found is None or self.flow.seen.get(node) is not value or value.node is not node:
                break
            node, value, letters = found, value.args[0], inner
        return node, letters

    def tensor(self, which: Operand, owner: Value, last: str) -> str:
        """q, k or v, in the order batch, rows, channels."""
        node, letters = self.peeled(which, owner)
        rows = self.found.rows if last[0] == "l" else self.found.keys
        target = (*self.found.batch, *rows, last[1])
        rank = self.found.shapes.rank(which.value)
        # Beside keys of two dimensions, and where it is stored, it may be a vector.
        unknown = rank is None and which.value.op == "selfattr"
        if MORE in target and (MORE not in letters or (rank == 2 and last[0] == "s") or unknown):
            raise Refuse(
                "it is unclear how many dimensions the tensors have", "unpack a shape: `B, H, T, D = q.shape`"
            )
        text = self._stable(node, which)
        done = reordered(text, letters, target)
        if last[-1] in letters and letters[-1] != last[-1]:
            # Fused kernels need a last stride of 1. This is no copy where k was given transposed.
            done = f"{done}.contiguous()"
        if not set(target) <= set(letters):
            done = self._expanded(done, letters, target)
        if len(rows) > 1:
            done = f"{atom(done)}.flatten({len(self.found.batch)}, {len(target) - 2})"
        return done

    def _stable(self, node: ast.expr, which: Operand) -> str:
        self.emitted.append(node)
        owner = self.found.final if which is self.found.v else self.found.product.value
        if owner.statement is self.at or self.stability.holds(node, self.at):
            return self.words.flat(node)
        known = next((name for name, other in self.hoisted if other is node), None)
        if known is not None:
            return known
        name = fresh({id(self.found.q): "query", id(self.found.k): "key"}.get(id(which), "value"), self.taken)
        self.taken.add(name)
        self.hoisted.append((name, node))
        return name

    def _expanded(self, text: str, letters: Letters, target: Letters) -> str:
        """Keys and values that all heads share, as wide as the queries: the kernels broadcast nothing."""
        q_node, q_letters = self.peeled(self.found.q, self.found.product.value)
        q_text = self._stable(q_node, self.found.q)
        sizes = []
        for each in target:
            if each in letters:
                sizes.append("-1")
            elif each in q_letters:
                sizes.append(f"{atom(q_text)}.shape[{q_letters.index(each)}]")
            else:
                raise Refuse("an axis of the values is in neither queries nor keys")
        return f"{text}.expand({', '.join(sizes)})"

    def leading(self) -> str | None:
        """The sizes of all batch axes but the last, where those become one; None where there are too few.

        Fused kernels take four dimensions; of more, PyTorch's unfused one computes them. Sizes that are not
        surely the same for queries, keys and values may broadcast, so these are left as they are.
        """
        batch, found = self.found.batch, self.found
        node, letters = self.peeled(found.q, found.product.value)
        if MORE in batch or len(batch) <= 2 or not isinstance(node, ast.Name):
            return None
        sizes = [self._sizes(each, batch) for each in (found.q, found.k, found.v)]
        if None in sizes or sizes[1:] != sizes[:-1]:
            return None
        text, places = self._stable(node, found.q), [letters.index(each) for each in batch[:-1]]
        if places == [*range(len(places))]:
            return f"{text}.shape[:{len(places)}]"
        return f"({', '.join(f'{text}.shape[{place}]' for place in places)})"

    def _sizes(self, which: Operand, batch: Letters) -> list[str] | None:
        """The sizes of an operand's batch axes, where all are known."""
        dims = self.found.shapes.of(which.value)
        if (
            dims is None
            or len(dims) != len(which.letters)
            or any(each not in which.letters for each in batch)
        ):
            return None
        return [dims[which.letters.index(each)] for each in batch]

    def lifted(self, text: str) -> str:
        """Two or three dimensions as four: otherwise the slow kernel runs."""
        batch = self.found.batch
        if MORE in batch or len(batch) >= 2:
            return text
        return f"{atom(text)}.unsqueeze(0)" if len(batch) == 1 else f"{atom(text)}[None, None]"

    def lowered(self, text: str) -> str:
        """The output with the dimensions and the order that the second product had."""
        batch, out = self.found.batch, self.found.out
        if MORE not in batch and len(batch) < 2:
            text = f"{text}.squeeze(0)" if len(batch) == 1 else f"{text}[0, 0]"
        letters = tuple(each for each in (*batch, *self.found.rows, "e") if each in out)
        if "l" in self.found.rows and "l" not in out:  # one query, whose axis is gone
            text = f"{text}.squeeze(-2)"
        elif len(self.found.rows) > 1:
            node, of_q = self.peeled(self.found.q, self.found.product.value)
            places = [of_q.index(each) for each in self.found.rows]
            sizes = ", ".join(f"{atom(self._stable(node, self.found.q))}.shape[{each}]" for each in places)
            text = f"{text}.unflatten({len(batch)}, ({sizes}))"
        return reordered(text, letters, out)


def _before(value: Value, letters: Letters) -> Letters | None:
    """The letters before a transposition."""
    if value.inner or value.op not in MOVES:
        return None
    marks = tuple(str(index) if each != MORE else MORE for index, each in enumerate(letters))
    after = moved(marks, value)
    if after is None:
        return None
    return tuple(letters[after.index(mark)] for mark in marks)


def _statement(value: Value) -> ast.stmt:
    assert value.statement is not None
    return value.statement
