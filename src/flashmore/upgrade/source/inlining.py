"""Helpers of the same file: what a call of one computes, its arguments in place of its parameters."""

import ast
from collections.abc import Callable, Sequence

from flashmore.upgrade.budget import step
from flashmore.upgrade.source.graph import Closure, Condition, Value
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import defaults_of, last
from flashmore.upgrade.source.state import State

_DEPTH = 5
_DECORATORS = {"staticmethod", "classmethod", "property"}
GRAD_MODES = {"no_grad", "enable_grad", "set_grad_enabled", "inference_mode"}


def _sets_grad_mode(block: ast.With) -> bool:
    made = (each.context_expr for each in block.items)
    return any(last(each.func if isinstance(each, ast.Call) else each) in GRAD_MODES for each in made)


class Inlining(State):
    """Reads functions where they are called."""

    expression: Callable[[ast.expr], Value]
    """See `Expressions`, and `Flow` for what reads statements."""
    block: Callable[[Sequence[ast.stmt]], bool]

    def outside(self, expression: ast.expr, module: Module) -> Value:
        """An expression of a module or of another method, read with no local names."""
        self.scopes.append({})
        self.calling.append(expression)
        before, self.module = self.module, module
        try:
            return self.expression(expression)
        finally:
            self.scopes.pop()
            self.calling.pop()
            self.module = before

    def inline(
        self, closure: Closure, args: Sequence[Value], named: dict[str, Value], node: ast.AST | None
    ) -> Value | None:
        """What a function returns: None where that cannot be said."""
        if closure.node in self.active or len(self.active) >= _DEPTH or not _is_plain(closure):
            return None
        if any(isinstance(each, ast.With) and _sets_grad_mode(each) for each in ast.walk(closure.node)):
            return None
        names = self._parameters(closure, [*closure.given, *args], {**dict(closure.given_named), **named})
        if names is None:
            return None
        step(len(closure.names))
        self.active.append(closure.node)
        self.scopes.append({**closure.names, **names})
        self.calling.append(node or closure.node)
        self.returned.append([])
        self.inlined.append((self.calling[0], closure))
        before, self.module = self.module, closure.module
        outer = len(self.conditions)
        try:
            if isinstance(closure.node, ast.Lambda):
                return self.expression(closure.node.body)
            self.block(closure.node.body)
            return self._folded(self.returned[-1], outer)
        finally:
            self.active.pop()
            self.scopes.pop()
            self.calling.pop()
            self.returned.pop()
            self.module = before

    def _parameters(
        self, closure: Closure, args: list[Value], named: dict[str, Value]
    ) -> dict[str, Value] | None:
        spec = closure.node.args
        positional = [each.arg for each in (*spec.posonlyargs, *spec.args)]
        if closure.bound is not None:
            args = [closure.bound, *args]
        if any(each.op == "star" for each in args) or spec.vararg or spec.kwarg:
            return None
        if len(args) > len(positional):
            return None
        names = dict(zip(positional, args, strict=False))
        allowed = {*positional, *(each.arg for each in spec.kwonlyargs)}
        if not set(named) <= allowed:
            return None
        names.update(named)
        for name, default in defaults_of(spec).items():
            if name not in names:
                names[name] = self.outside(default, closure.module)
        return names if allowed <= set(names) else None

    def _folded(self, returned: list[tuple[tuple[Condition, ...], Value]], outer: int) -> Value | None:
        """Several returns as one value that depends on their conditions."""
        if not returned:
            return self.make("const", detail=None)
        result = returned[-1][1]
        for conditions, value in reversed(returned[:-1]):
            inner = conditions[outer:]
            if value is not result:
                condition = inner[-1] if inner else Condition(None, True)
                result = self.make("phi", (value, result), detail=condition)
        return result


def _is_plain(closure: Closure) -> bool:
    """Whether a function runs as it is written, and no decorator replaces it."""
    return all(
        (isinstance(each, ast.Name) and each.id in _DECORATORS)
        or closure.module.qualified(each).startswith("torch.jit.")
        for each in getattr(closure.node, "decorator_list", ())
    )
