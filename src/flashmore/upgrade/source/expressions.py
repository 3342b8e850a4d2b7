"""Expressions, read as values of the graph: names, attributes, operators, subscripts, tuples."""

import ast
from collections.abc import Sequence

from flashmore.upgrade.budget import step
from flashmore.upgrade.source.attributes import Attribute
from flashmore.upgrade.source.calls import Calls
from flashmore.upgrade.source.escape import stripped
from flashmore.upgrade.source.graph import Closure, Condition, Value
from flashmore.upgrade.source.replaced import stands_for
from flashmore.upgrade.source.scopes import is_static

OPERATORS = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.MatMult: "matmul", ast.Pow: "pow",
    ast.FloorDiv: "floordiv", ast.Mod: "mod", ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "xor",
    ast.LShift: "lshift", ast.RShift: "rshift", ast.USub: "neg", ast.UAdd: "pos", ast.Invert: "invert",
    ast.Not: "not", ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge",
    ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in", ast.And: "py:and", ast.Or: "py:or",
}  # fmt: skip
"""The operation that each operator of Python's means."""


class Expressions(Calls):
    """Reads expressions."""

    def expression(self, node: ast.expr) -> Value:
        """The value of an expression."""
        step()
        value = self._expression(node)
        if not self.inner:
            self.seen[node] = value
        return value

    def _expression(self, node: ast.expr) -> Value:
        match node:
            case ast.Name(id=name):
                return self.lookup(name)
            case ast.Constant(value=value):
                return self.make("const", detail=value, node=node)
            case ast.JoinedStr(values=parts):
                return self._text(node, parts)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Call():
                return self.call(node)
            case ast.BinOp(left=left, op=operator, right=right):
                args = (self.expression(left), self.expression(right))
                return self._joined(args, node) or self.make(OPERATORS[type(operator)], args, node=node)
            case ast.UnaryOp(op=operator, operand=operand):
                return self.make(OPERATORS[type(operator)], (self.expression(operand),), node=node)
            case ast.Compare(left=left, ops=operators, comparators=others):
                op = OPERATORS[type(operators[0])] if len(operators) == 1 else "compare"
                return self.make(op, self._all([left, *others]), node=node)
            case ast.BoolOp(op=operator, values=values):
                return self.make(OPERATORS[type(operator)], self._all(values), node=node)
            case ast.Subscript(value=base, slice=index):
                return self._subscript(node, self.expression(base), self.expression(index))
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                return self.make("tuple", self._all(elements), node=node)
            case ast.Starred(value=inside):
                return self.make("star", (self.expression(inside),), node=node)
            case ast.Slice():
                return self.make("slice", self._slice(node), node=node)
            case ast.IfExp():
                return self._choice(node)
            case ast.Lambda():
                return self.make("closure", detail=Closure(node, self.module, self.env), node=node)
            case ast.NamedExpr(target=target, value=value):
                self.assign(target, self.expression(value))
                return self.lookup(target.id)
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp() | ast.DictComp():
                return self._comprehension(node)
        return self._opaque(node)

    def _text(self, node: ast.JoinedStr, parts: Sequence[ast.expr]) -> Value:
        """An f-string: a constant where all that is put into it is one."""
        values = [self.expression(e.value if isinstance(e, ast.FormattedValue) else e) for e in parts]
        plain = all(not isinstance(e, ast.FormattedValue) or e.format_spec is None for e in parts)
        if plain and all(each.op == "const" and isinstance(each.detail, str) for each in values):
            return self.make("const", detail="".join(str(each.detail) for each in values), node=node)
        return self.make("opaque", values, node=node)

    def _opaque(self, node: ast.expr) -> Value:
        children = [each for each in ast.iter_child_nodes(node) if isinstance(each, ast.expr)]
        if isinstance(node, ast.Dict):  # each key before its value
            children = [each for pair in zip(node.keys, node.values, strict=True) for each in pair if each]
        return self.make("opaque", self._all(children), node=node)

    def _all(self, nodes: Sequence[ast.expr]) -> tuple[Value, ...]:
        return tuple(self.expression(each) for each in nodes)

    def _slice(self, node: ast.Slice) -> tuple[Value, ...]:
        parts = (node.lower, node.upper, node.step)
        return tuple(self.make("const") if part is None else self.expression(part) for part in parts)

    def _joined(self, args: tuple[Value, ...], node: ast.BinOp) -> Value | None:
        """Tuples that are added or repeated."""
        if isinstance(node.op, ast.Add) and all(each.op == "tuple" for each in args):
            return self.make("tuple", (*args[0].args, *args[1].args), node=node)
        return None

    def _attribute(self, node: ast.Attribute) -> Value:
        if self._is_global(node):
            full = self.module.qualified(node)
            return self.of_elsewhere(full) or self.make("global", detail=full, node=node)
        base = self.expression(node.value)
        if base.op == "self":
            return self.self_attribute(base, node.attr, node)
        return self.make(f"attr:{node.attr}", (base,), node=node)

    def self_attribute(self, base: Value, name: str, node: ast.AST | None) -> Value:
        """`self.x`: what was stored there in this function, a method, or an attribute of the class."""
        path = f"{base.detail}.{name}"
        if (stored := self.env.get(path)) is not None:
            return stored
        owner = self.owners.get(str(base.detail))
        method = owner.method_and_module(name) if owner else None
        if owner is not None and any(name in each.own_methods for each in owner.below(self.module)):
            method = None
        if stands_for(self.module.replaced - {None}, name):
            method = None
        if method is not None:
            module, function = method
            closure = Closure(function, module, {}, bound=None if is_static(function) else base)
            value = self.make("closure", detail=closure, node=node)
            if any(isinstance(each, ast.Name) and each.id == "property" for each in function.decorator_list):
                return self.inline(closure, (), {}, node) or value
            return value
        return self.make("selfattr", detail=Attribute(path, owner, name), node=node)

    def _subscript(self, node: ast.Subscript, base: Value, index: Value) -> Value:
        elements = self.elements(base)
        at = index.detail if index.op == "const" and elements is not None else None
        if elements is not None and isinstance(at, int) and -len(elements) <= at < len(elements):
            return elements[at]
        return self.make("index", (base, index), node=node)

    def _choice(self, node: ast.IfExp) -> Value:
        _, condition = self.asked(node.test)
        self.conditions.append(condition)
        one = self.expression(node.body)
        self.conditions[-1] = self.condition(node.test, False)
        two = self.expression(node.orelse)
        self.conditions.pop()
        return self.make("phi", (one, two), detail=self.condition(node.test, True), node=node)

    def _comprehension(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp) -> Value:
        source = self.expression(node.generators[0].iter)
        if isinstance(node, ast.DictComp):
            return self.make("opaque", (source,), node=node)
        elements = self.elements(source)
        keep = dict(self.env)
        if elements is not None and len(node.generators) == 1 and not node.generators[0].ifs:
            results = []
            for each in elements:
                self.assign(node.generators[0].target, each)
                results.append(self.expression(node.elt))
            result = self.make("tuple", tuple(results), node=node)
        else:
            for generator in node.generators:
                self.assign(generator.target, self.make("element", (self.expression(generator.iter),)))
                self._all(generator.ifs)
            result = self.make("opaque", (source, self.expression(node.elt)), node=node)
        targets = {each.id for generator in node.generators for each in _named(generator.target)}
        for name in (set(self.env) - set(keep)) | targets:
            self.env.pop(name, None)
        self.env.update({name: keep[name] for name in targets & set(keep)})
        return result

    def assign(self, target: ast.expr, value: Value) -> None:
        """Stores a value: under a name, in pieces, in an element, on an object."""
        match target:
            case ast.Name(id=name):
                self.env[name] = value
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                for each, part in zip(elements, self.pieces(value, elements), strict=True):
                    self.assign(each.value if isinstance(each, ast.Starred) else each, part)
            case ast.Subscript(value=base_node, slice=index):
                base = self.expression(base_node)
                made = self.make("setitem", (base, self.expression(index), value), node=target, inplace=True)
                self.rebind(base, made)
            case ast.Attribute(value=base_node, attr=name):
                base = self.expression(base_node)
                self.make("store", (value, base), node=target, detail=name)
                if base.op == "self":
                    self.env[f"{base.detail}.{name}"] = value
                    self.stored.add(f"{base.detail}.{name}")
            case _:
                self.make("store", (value,), node=target)

    def augmented(self, statement: ast.AugAssign) -> None:
        """`x += y`: in place, wherever x is known under another name too."""
        base, other = self.expression(statement.target), self.expression(statement.value)
        op = OPERATORS[type(statement.op)]
        made = self.make(op, (base, other), node=statement, inplace=True)
        if isinstance(statement.target, ast.Name):
            self.rebind(base, made)
            self.env[statement.target.id] = made
        else:
            self.assign(statement.target, made)

    def asked(self, test: ast.expr) -> tuple[Value, Condition]:
        """A test that is evaluated now, and its condition, whose value in `tests` has no `not` in front."""
        value = self.expression(test)
        condition = self.condition(test, True)
        if condition.node is not None:
            self.tests[id(condition.node)] = self.seen[condition.node]
        return value, condition

    def condition(self, test: ast.expr, holds: bool) -> Condition:
        """A test, as a condition."""
        test, negated = stripped(test)
        return Condition(None if self.inner else test, holds != negated, self.statement)


def _named(target: ast.expr) -> list[ast.Name]:
    return [
        each for each in ast.walk(target) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    ]
