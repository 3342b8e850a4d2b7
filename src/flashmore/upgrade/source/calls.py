"""Calls: which operation a call means, whatever it is called through."""

import ast
from collections.abc import Callable
from dataclasses import replace

from flashmore.upgrade.patterns.masks import INFINITE, fill_kind
from flashmore.upgrade.source.attributes import UNKNOWN, Attribute, kind_of
from flashmore.upgrade.source.graph import PRODUCTS, Closure, Condition, Value
from flashmore.upgrade.source.inlining import Inlining
from flashmore.upgrade.source.module import FUNCTIONAL, Found, Module
from flashmore.upgrade.source.scopes import head

_EINOPS = {
    "einops.rearrange": "rearrange",
    "einops.repeat": "einops.repeat",
    "einops.einsum": "einops.einsum",
}
_PYTHON = ("int", "float", "len", "max", "min", "abs", "range", "bool", "sum", "print", "isinstance")
_SELF_NAMES = ("input", "self", "x", "tensor")


def operation(full: str) -> str | None:
    """The operation that a library's function means, whatever it is called through."""
    if full in _EINOPS:
        return _EINOPS[full]
    if full in ("opt_einsum.contract", "numpy.einsum"):
        return "einsum"
    for prefix in (FUNCTIONAL + ".", "torch.Tensor.", "torch.special.", "torch.linalg.", "torch."):
        if full.startswith(prefix):
            rest = full[len(prefix) :]
            return rest if "." not in rest else None
    if full.startswith(("math.", "numpy.", "cmath.")):
        return full.split(".", 1)[1]
    return None


class Calls(Inlining):
    """Reads calls."""

    self_attribute: Callable[[Value, str, ast.AST | None], Value]
    """See `Expressions`."""

    def call(self, node: ast.Call) -> Value:
        """The value of a call."""
        if isinstance(node.func, ast.Attribute) and not self._is_global(node.func):
            base = self.expression(self._filled(node, node.func))
            callee = self._method(base, node.func)
        else:
            base, callee = None, self.expression(node.func)
        args = self._spread_arguments([self.expression(each) for each in node.args])
        named = {each.arg: self.expression(each.value) for each in node.keywords if each.arg}
        more = [self.expression(each.value) for each in node.keywords if each.arg is None]
        if callee is None and base is not None:
            return self._call_method(base, node.func.attr, args, named, node)  # type: ignore[attr-defined]
        assert callee is not None
        return self.apply(callee, [*args, *more], named, node)

    def _filled(self, node: ast.Call, method: ast.Attribute) -> ast.expr:
        """What a method is called on; in `x.data.masked_fill_(mask, -inf)` x itself.

        Autograd sees no fill then, but softmax gives -inf no gradient either. What the call returns is
        detached, so it must not be used.
        """
        if self.inner or not (isinstance(self.statement, ast.Expr) and self.statement.value is node):
            return method.value
        match method.value, node.args:
            case ast.Attribute(value=inner, attr="data"), [_, fill] if method.attr == "masked_fill_":
                hides = fill_kind(self.expression(fill), self.module) == INFINITE
                return inner if hides and not node.keywords else method.value
        return method.value

    def _is_global(self, node: ast.Attribute) -> bool:
        return bool(self.module.qualified(node)) and head(node) not in self.env

    def _method(self, base: Value, node: ast.Attribute) -> Value | None:
        """What `base.name` is, where it is more than a method of a tensor."""
        if base.op != "self":
            return None
        return self.self_attribute(base, node.attr, node)

    def _spread_arguments(self, args: list[Value]) -> list[Value]:
        result = []
        for each in args:
            known = self.elements(each.args[0]) if each.op == "star" else None
            result.extend(known if known is not None else [each])
        return result

    def _call_method(
        self, base: Value, name: str, args: list[Value], named: dict[str, Value], node: ast.AST
    ) -> Value:
        inplace = name.endswith("_") and not name.endswith("__")
        op = name[:-1] if inplace else name
        if op == "masked_fill" and "mask" in named:
            args = [named["mask"], named.get("value") or args[0]]
            named = {}
        value = self.make(op, (base, *args), named, node, detail="method", inplace=inplace)
        if inplace:
            self.rebind(base, value)
        return value

    def apply(self, callee: Value, args: list[Value], named: dict[str, Value], node: ast.AST | None) -> Value:
        """Calls something that is known."""
        if callee.op == "closure":
            assert isinstance(callee.detail, Closure)
            result = self.inline(callee.detail, args, named, node)
            name = getattr(callee.detail.node, "name", None)
            return result or self.make("call", (callee, *args), named, node, detail=name)
        if callee.op == "global":
            return self._call_global(str(callee.detail), callee, args, named, node)
        if callee.op == "selfattr":
            return self._call_attribute(callee, args, named, node)
        if callee.op == "call" and callee.detail == "torch.nn.Softmax" and len(args) == 1 and not named:
            dim = callee.get(1, "dim")
            return self.make(
                "softmax", args[:1], {"dim": dim} if dim is not None else {}, node, detail="made"
            )
        if callee.op == "call" and callee.detail == "torch.nn.Dropout" and len(args) == 1:
            p = callee.get(1, "p")
            if "inplace" not in callee.named and len(callee.args) < 3 and (p is None or p.op == "const"):
                return self.make("dropout", args, {"p": p} if p is not None else {}, node, detail="made")
        if callee.op == "partial":
            return self.apply(callee.args[0], [*callee.args[1:], *args], {**callee.named, **named}, node)
        if callee.op == "phi" and all(each.op in ("global", "closure") for each in callee.args):
            return self._call_either(callee, args, named, node)
        return self.make("call", (callee, *args), named, node)

    def _call_either(
        self, callee: Value, args: list[Value], named: dict[str, Value], node: ast.AST | None
    ) -> Value:
        """Calls one of two functions: what either does happens under its condition alone."""
        condition = callee.detail
        assert isinstance(condition, Condition)
        results = []
        for each, holds in zip(callee.args, (condition, condition.opposite()), strict=True):
            self.conditions.append(holds)
            results.append(self.apply(each, args, named, node))
            self.conditions.pop()
        return self.make("phi", results, detail=condition, node=node)

    def _call_global(
        self, full: str, callee: Value, args: list[Value], named: dict[str, Value], node: ast.AST | None
    ) -> Value:
        function = self.module.functions.get(full)
        if function is not None:
            return self.inline(Closure(function, self.module, {}), args, named, node) or self.make(
                "call", (callee, *args), named, node
            )
        constant = self.module.constants.get(full)
        if constant is not None and self._is_function(constant, self.module):
            return self.apply(self.outside(constant, self.module), args, named, node)
        if full in ("functools.partial", "partial") and args:
            return self._partial(args, named, node)
        if full == "map" and len(args) == 2 and (elements := self.elements(self._as_tuple(args[1]))):
            return self.make("tuple", [self.apply(args[0], [each], {}, node) for each in elements], node=node)
        if full == "zip" and args and all(self.elements(each) for each in args):
            rows = zip(*(each.args for each in args), strict=False)
            return self.make("tuple", [self.make("tuple", row) for row in rows], node=node)
        if full in ("tuple", "list") and len(args) == 1 and args[0].op == "tuple":
            return args[0]
        if full in _PYTHON:
            return self.make(f"py:{full}", args, named, node)
        op = operation(full)
        if op is None:
            scores = any(each.of_product for each in (*args, *named.values()))
            if scores or full.rpartition(".")[2] in PRODUCTS:
                found = self.followed(full)
                if found is not None and found.detail != full:
                    if isinstance(node, ast.Call) and not self.inner:
                        self.seen[node.func] = found
                    return self.apply(found, args, named, node)
            return self.make("call", (callee, *args), named, node, detail=full)
        return self._tensor_call(op, args, named, node)

    def _is_function(self, constant: ast.expr, module: Module) -> bool:
        """Whether a constant is a lambda, a name of a library's, or a partial."""
        partial = isinstance(constant, ast.Call) and module.qualified(constant.func)
        return isinstance(constant, (ast.Lambda, ast.Attribute)) or partial == "functools.partial"

    def defined(self, found: Found) -> Value | None:
        """A definition of another file, where it is a function, a number or a text."""
        module, name = found.module, found.name
        if (function := module.functions.get(name)) is not None:
            return self.make("closure", detail=Closure(function, module, {}))
        constant = module.constants.get(name)
        if constant is None:
            return None
        if _is_literal(constant):
            value = self.outside(constant, module)
            self.literals[value] = constant
            return value
        return self.outside(constant, module) if self._is_function(constant, module) else None

    def _tensor_call(
        self, op: str, args: list[Value], named: dict[str, Value], node: ast.AST | None
    ) -> Value:
        if not args and op not in ("zeros", "ones", "full"):
            first = next((name for name in _SELF_NAMES if name in named), None)
            if first is not None:
                args = [named[first]]
                named = {name: value for name, value in named.items() if name != first}
        if op in ("matmul", "bmm", "mm") and len(args) == 1:
            other = next((named[name] for name in ("other", "mat2") if name in named), None)
            args, named = ([*args, other], {}) if other is not None else (args, named)
        if op == "chunk" or op == "split":
            return self.make(op, args, named, node)
        return self.make(op, args, named, node, inplace=op.endswith("_") and not op.endswith("__"))

    def _as_tuple(self, value: Value) -> Value:
        """`x.chunk(3, dim=-1)` as three values."""
        if value.op in ("chunk", "tensor_split") and len(value.args) > 1 and value.args[1].op == "const":
            count = value.args[1].detail
            if isinstance(count, int) and 0 < count <= 8:
                return self.make("tuple", [self.make("item", (value,), detail=i) for i in range(count)])
        return value

    def _partial(self, args: list[Value], named: dict[str, Value], node: ast.AST | None) -> Value:
        first, *given = args
        closure = first.detail
        if isinstance(closure, Closure):
            made = replace(
                closure, given=(*closure.given, *given), given_named=(*closure.given_named, *named.items())
            )
            return self.make("closure", detail=made, node=node)
        return self.make("partial", (first, *given), named, node)

    def _call_attribute(
        self, callee: Value, args: list[Value], named: dict[str, Value], node: ast.AST | None
    ) -> Value:
        attribute = callee.detail
        assert isinstance(attribute, Attribute)
        kind = kind_of(attribute, self.module)
        home = kind.home or self.module
        if kind.name == "softmax" and self.module.is_replaced("dim"):
            kind = UNKNOWN
        if kind.name == "softmax" and len(args) == 1 and not named and isinstance(kind.expression, ast.Call):
            made = kind.expression
            dim = (
                made.args[0] if made.args else next((e.value for e in made.keywords if e.arg == "dim"), None)
            )
            extra = {"dim": self.outside(dim, home)} if dim is not None else {}
            return self.make("softmax", args[:1], extra, node, detail=attribute)
        if kind.name in ("dropout", "identity") and args:
            return self.make(kind.name, args[:1], {}, node, detail=(attribute, kind))
        if kind.name == "layer":
            return self.make(f"layer:{kind.detail}", args, named, node, detail=kind.expression)
        if kind.name == "function" and kind.expression is not None:
            return self._call_stored(kind.expression, home, args, named, node)
        if kind.made is not None:
            forward = kind.made.method_and_module("forward")
            if forward is not None and len(ast.dump(forward[1])) < 6000:
                self.owners[attribute.path] = kind.made
                closure = Closure(forward[1], forward[0], {}, bound=Value("self", detail=attribute.path))
                if (result := self.inline(closure, args, named, node)) is not None:
                    return result
        return self.make("call", (callee, *args), named, node, detail=attribute)

    def _call_stored(
        self, expression: ast.expr, home: Module, args: list[Value], named: dict[str, Value],
        node: ast.AST | None,
    ) -> Value:  # fmt: skip
        if isinstance(expression, ast.Call) and expression.args:
            extra = {each.arg: self.outside(each.value, home) for each in expression.keywords if each.arg}
            first = self.outside(expression.args[0], home)
            return self.apply(first, args, {**extra, **named}, node)
        return self.apply(self.outside(expression, home), args, named, node)


def _is_literal(node: ast.expr) -> bool:
    """A number or a text, as `-1e9` and `float("-inf")` are."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_literal(operand)
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant()], keywords=[]):
            return True
    return isinstance(node, ast.Constant)
