"""The inputs of the extracted lines: what stands for each expression of the user's, and its axes."""

import ast
from dataclasses import replace

from flashmore.upgrade.axes import Letters, Refuse
from flashmore.upgrade.budget import walk
from flashmore.upgrade.emit.call import Pieces
from flashmore.upgrade.emit.hiding import from_caller, may_hide, own_low
from flashmore.upgrade.emit.words import Words
from flashmore.upgrade.fragment.axes import Axes
from flashmore.upgrade.patterns.masks import FINITE, is_lower_triangle
from flashmore.upgrade.patterns.scales import is_constant
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.site import Dtype, Input, Role
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.nodes import operand
from flashmore.upgrade.text import Text


def _is_constant(value: Value | None) -> bool:
    """Whether something is a number or a truth value, or a tensor that is made of one."""
    made = value is not None and value.op in ("tensor", "as_tensor")
    return value is not None and (value.args[0] if made else value).op == "const"


def _are_one_attribute(one: Value | None, two: Value | None) -> bool:
    """Whether two expressions read the same attribute of `self`, which nothing stores in between."""
    return one is not None and two is not None and one.op == "selfattr" == two.op and one.key == two.key


class Inputs:
    """Names for the expressions that are cut out.

    Args:
        found: the attention.
        text: its source.
    """

    def __init__(self, found: Attention, text: Text) -> None:
        self.all = found
        self.flow = found.flow
        self.text = text
        self.found: list[Input] = []
        self.names: dict[ast.AST, str] = {}
        self.query = "q"
        self.query_letters: Letters = ()
        self.tensors: dict[Value | None, str] = {}
        """q and k, by their values."""
        self.operands: dict[Value | None, str] = {}
        """q, k and v, by their values."""
        self.taken: set[str] = {each.id for each in walk(found.flow.function) if isinstance(each, ast.Name)}
        self.axes = Axes(found)

    def add(
        self, name: str, source: str, role: Role, axes: tuple[str, ...] | None = None,
        dtype: Dtype = "float", note: str = "",
    ) -> str:  # fmt: skip
        """The name of an input: a new one, or that of the same expression."""
        for each in self.found:
            if source and (each.source, each.role, each.axes) == (source, role, axes):
                return each.name
        self.found.append(Input(name, source, role, axes, dtype, note))
        return name

    def fresh(self, wanted: str) -> str:
        """A name that nothing else has."""
        name, count = wanted, 1
        while name in self.taken or any(each.name == name for each in self.found):
            count += 1
            name = f"{wanted}{count}"
        return name

    def products(self) -> None:
        """q, k and v."""
        pieces = Pieces(self.all, Words(self.text))
        owners = (self.all.product.value, self.all.product.value, self.all.final)
        parts = [
            (which, wanted, *pieces.peeled(which, owner))
            for which, owner, wanted in zip(
                (self.all.q, self.all.k, self.all.v), owners, ("query", "key", "value"), strict=True
            )
        ]
        key, value = (self.flow.seen.get(node) for _, _, node, _ in parts[1:])
        if key is value or _are_one_attribute(key, value):
            self.axes.letter["e"] = "D"
        known = self.operands
        for which, wanted, node, letters in parts:
            seen = self.flow.seen.get(node)
            if (one := next((each for each in known if _are_one_attribute(each, seen)), None)) is not None:
                known[seen] = known[one]
            if seen in known:
                self.names[node] = known[seen]
                continue
            name = (
                node.id if isinstance(node, ast.Name) and not self._stored_later(node) else self.fresh(wanted)
            )
            name = self.add(name, self.text.of(node), "tensor", self.axes.of(letters))
            self.names[node] = known[seen] = name
            if which is not self.all.v:
                self.tensors[seen] = name
            if which is self.all.q:
                self.query, self.query_letters = name, letters

    def _stored_later(self, node: ast.Name) -> bool:
        """Whether the lines give the name another meaning, so that an input needs one of its own."""
        return any(
            isinstance(target, ast.Name) and target.id == node.id
            for value in self.all.chain
            if isinstance(value.statement, (ast.Assign, ast.AugAssign))
            for target in (
                getattr(value.statement, "targets", None) or [getattr(value.statement, "target", None)]
            )
        )

    def scale(self, term: Term) -> None:
        """A number, or a learned tensor."""
        assert term.other is not None
        node = operand(self.flow, term.value.node, term.other)
        if node is None:
            raise Refuse("a scale that cannot be cut out")
        if (known := number(term.other)) is not None:
            if any(isinstance(each, ast.Name) for each in walk(node)):
                self.names[node] = f"({known!r})"
            return
        if Pieces(self.all, Words(self.text)).has_default_scale():
            self._default_scale(term, node)
            return
        constant = is_constant(term.other, self.flow.module)
        axes = self.axes.of_learned(term.other) if term.detail[0] == "learned" and not constant else None
        note = "constant" if constant else ""
        self.names[node] = self.add(self.fresh("scale"), self.text.of(node), "scale", axes, note=note)

    def _default_scale(self, term: Term, node: ast.expr) -> None:
        """1 / sqrt(D) as it is written, where it is read from q or k; else by its meaning, from q's size."""
        names = [each for each in walk(node) if isinstance(each, ast.Name)]
        given = {each: self.tensors.get(self.flow.seen.get(each)) for each in names}
        modules = {each for each in names if getattr(self.flow.seen.get(each), "op", "") == "global"}
        if all(given[each] or each in modules for each in names):
            self.names |= {each: name for each, name in given.items() if name is not None}
            return
        at = self.query_letters.index("d") - len(self.query_letters)
        root = f"{self.query}.size({at}) ** 0.5"
        self.names[node] = f"({root})" if term.detail[1] == "div" else f"(1 / {root})"

    def added(self, term: Term, node: ast.expr | None, wanted: str) -> str:
        """A bias or an additive mask."""
        assert term.other is not None
        outside = from_caller(term.other)
        if node is not None and any(each.detail[:1] == (FINITE,) for each in self.all.scores.walk()):
            outside = may_hide(term.other, self.text.of(node))
        axes = self.axes.broadcast(term, None if node is None else term.other)
        source = self.text.of(node) if node is not None else wanted
        return self._addend(wanted, source, axes, outside, own_low(term.other))

    def _addend(self, wanted: str, source: str, axes: tuple[str, ...], outside: bool, low: str) -> str:
        """What is added to the scores: a mask, where it hides keys or may come from outside and hide some."""
        if outside or low:
            note = "additive" if outside else f"additive {low}"
            return self.add(self.fresh("mask"), source, "mask", axes, note=note)
        return self.add(self.fresh(wanted), source, "bias", axes)

    def of_baddbmm(self, term: Term) -> None:
        """What `baddbmm` adds, and its factors."""
        value, product = term.value, term.product
        if product is None or product.added is None:
            return
        node = operand(self.flow, value.node, product.added)
        if node is None:
            raise Refuse("a bias that cannot be cut out")
        source = self.text.of(node)
        outside = may_hide(product.added, source)
        self.names[node] = self._addend("bias", source, self.axes.of_out(), outside, own_low(product.added))
        for name in ("alpha", "beta"):
            given = value.named.get(name)
            found = operand(self.flow, value.node, given) if given is not None else None
            if found is not None and number(given) is None:
                self.names[found] = self.add(self.fresh("scale"), self.text.of(found), "scale")

    def view(self, term: Term) -> None:
        """The sizes that a reshape is given."""
        if term.value.inner or term.value.op in ("squeeze", "unsqueeze", "flatten"):
            return
        axes = self.axes.of_view(term)
        node = term.value.node
        if isinstance(node, ast.Call) and len(node.args) == 1 and self._is_own_shape(node.args[0]):
            return
        if axes is None or not isinstance(node, ast.Call):
            raise Refuse("a reshape that cannot be cut out")
        arguments = (
            node.args[0].elts if len(node.args) == 1 and isinstance(node.args[0], ast.Tuple) else node.args
        )
        if len(arguments) != len(axes):
            raise Refuse("a reshape that cannot be cut out")
        for argument, axis in zip(arguments, axes, strict=True):
            value = self.flow.seen.get(argument)
            if value is None or number(value) is None:
                wanted = f"size_{axis.replace('*', '_')}"
                self.names[argument] = self.add(
                    self.fresh(wanted), self.text.of(argument), "size", (axis,), "int"
                )

    def _is_own_shape(self, node: ast.expr) -> bool:
        """Whether a reshape is given the shape of scores or weights, or these: `*scores.size()`."""
        value = self.flow.seen.get(node.value if isinstance(node, ast.Starred) else node)
        if value is not None and value.op in ("attr:shape", "size") and len(value.args) == 1:
            value = value.args[0]
        return value in self.all.chain

    def mask(self, term: Term) -> None:
        """What a fill hides, as a tensor: the inside of `mask == 0` and `~mask`."""
        assert term.other is not None
        node = operand(self.flow, term.value.node, term.other)
        if node is None and term.value.op == "setitem" and isinstance(term.value.node, ast.Subscript):
            node = term.value.node.slice
        if node is None:
            raise Refuse("a mask that cannot be cut out")
        dtype: Dtype = "bool"
        value, note = term.other, "True keeps" if term.detail[2] else "True hides"
        axes = self.axes.broadcast(term, value)
        match node:
            case ast.Compare(left=left, ops=[_], comparators=[other]) if (
                left in self.flow.seen and _is_constant(self.flow.seen.get(other))
            ):
                node, value, dtype, note = left, self.flow.seen[left], "float", "0/1"
            case ast.UnaryOp(op=ast.Invert(), operand=inner) if inner in self.flow.seen:
                node, value = inner, self.flow.seen[inner]
                note = "True hides" if note == "True keeps" else "True keeps"
        if "0/1" in term.detail:
            dtype, note = "float", "0/1, no gradient"
        triangle = is_lower_triangle(value, self.flow.module, self.all.shapes)
        if triangle is not None:
            note = "lower triangular" if triangle else "upper triangular"
        elif value.op == "eye":
            note = "diagonal"
        self.names[node] = self.add(self.fresh("mask"), self.text.of(node), "mask", axes, dtype, note)
        for each in walk(term.value.node) if term.value.node is not None else ():
            if isinstance(each, ast.Name) and self.flow.seen.get(each) is value:
                self.names[each] = self.names[node]

    def dropout(self, term: Term) -> None:
        """A module, or a rate and whether it is training."""
        node = term.value.node
        if term.value.op == "identity" or not isinstance(node, ast.Call):
            return
        if isinstance(term.value.detail, tuple) or term.value.op == "call":
            self.names[node.func] = self.add(self.fresh("drop"), self.text.of(node.func), "dropout")
            return
        roles: tuple[tuple[Value | None, Role], ...] = (
            (term.value.get(1, "p"), "number"),
            (term.value.get(2, "training"), "flag"),
        )
        for value, role in roles:
            found = operand(self.flow, node, value) if value is not None else None
            if found is not None and not isinstance(found, ast.Constant):
                self.names[found] = self.add(self.fresh(role), self.text.of(found), role)

    def dropped(self, term: Term, text: str) -> str:
        """The dropout of a helper whose rate and mode the caller gives."""
        words = Words(self.text, self.names)
        parts = [text]
        for index, name in ((1, "p"), (2, "training")):
            given = term.value.get(index, name)
            if given is None:
                continue
            node = operand(self.flow, term.value.node, given)
            if node is None and given.op != "const":
                raise Refuse("a dropout that cannot be cut out")
            parts.append(f"{name}={words.of(node) if node is not None else given.detail}")
        return f"F.dropout({', '.join(parts)})"

    def hidden(self, term: Term) -> str:
        """What a helper hides."""
        return self.add(self.fresh("mask"), "", "mask", self.axes.broadcast(term, None), "bool", "True hides")

    def flag(self, node: ast.expr) -> str:
        """A test."""
        return self.add(self.fresh("flag"), self.text.of(node), "flag", dtype="bool")

    def take_apart(self) -> None:
        """Give every input the axes that a reshape took apart."""
        split = self.axes.split
        if split:
            self.found = [
                replace(made, axes=made.axes and tuple(split.get(axis, axis) for axis in made.axes))
                for made in self.found
            ]
