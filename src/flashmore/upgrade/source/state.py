"""What is known while a function is read: names, conditions, and the values made so far."""

import ast
from collections.abc import Callable, Sequence

from flashmore.upgrade.budget import step
from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.graph import Closure, Condition, Value
from flashmore.upgrade.source.module import Found, Module
from flashmore.upgrade.source.written import written_softmax

_LIBRARIES = ("torch.", "math.", "numpy.", "einops.", "functools.")
"""What is not looked for in the project."""


class State:
    """The names in sight, innermost function last."""

    defined: Callable[[Found], Value | None]
    """See `Calls`."""

    def __init__(self, module: Module, owner: Class | None) -> None:
        self.module = module
        """The module of the lines that are being read: another one than `own` within a helper."""
        self.own = module
        self.owner = owner
        self.owners: dict[str, Class | None] = {"self": owner}
        self.scopes: list[dict[str, Value]] = [{}]
        self.conditions: list[Condition] = []
        self.values: list[Value] = []
        self.seen: dict[ast.expr, Value] = {}
        self.tests: dict[int, Value] = {}
        self.ranks: dict[Value, int] = {}
        self.sized: list[tuple[Value, Value]] = []
        """Tensors whose sizes are asserted, and the tuples that say them."""
        self.stored: set[str] = set()
        self.statement: ast.stmt | None = None
        self.calling: list[ast.AST] = []
        self.returned: list[list[tuple[tuple[Condition, ...], Value]]] = []
        self.active: list[ast.AST] = []
        self.inlined: list[tuple[ast.AST, Closure]] = []
        """The functions that were read, with the call in the analysed function that leads to them."""
        self.literals: dict[Value, ast.expr] = {}
        """Constants of other files, as they are written there."""

    @property
    def env(self) -> dict[str, Value]:
        """The names of the function that is being read."""
        return self.scopes[-1]

    @property
    def inner(self) -> bool:
        """Whether a helper is being read."""
        return bool(self.calling)

    def make(
        self,
        op: str,
        args: Sequence[Value] = (),
        named: dict[str, Value] | None = None,
        node: ast.AST | None = None,
        detail: object = None,
        inplace: bool = False,
    ) -> Value:
        """A new value, with the place and the conditions of this moment."""
        step(1 + len(args))
        if self.inner:
            node = self.calling[0]
        if (written := written_softmax(op, args, named)) is not None and not inplace:
            op, args, named, detail = "softmax", written.scores, dict(written.dim), written
        value = Value(
            op, tuple(args), named or {}, node, self.statement, tuple(self.conditions), detail,
            inner=self.inner, inplace=inplace,
        )  # fmt: skip
        self.values.append(value)
        return value

    def lookup(self, name: str) -> Value:
        """The value of a name: local, a constant of the module, an import, a builtin."""
        if name in self.env:
            return self.env[name]
        module, full = self.module, self.module.imports.get(name, name)
        if module is not self.own and name in module.meanings and name not in module.imports:
            return self.defined(Found(module, name)) or self.make("global", detail=f"{module.path}:{name}")
        return self.of_elsewhere(full) or self.make("global", detail=full)

    def of_elsewhere(self, full: str) -> Value | None:
        """What an import brings from another file: a number or a text that is written in capitals."""
        if not full.rpartition(".")[2].isupper():
            return None
        return self.followed(full)

    def followed(self, full: str) -> Value | None:
        """What an import brings from another file: a function, a number or a text, a library's name."""
        found = self.module.definition(full) if not full.startswith(_LIBRARIES) else None
        if isinstance(found, str):
            return self.make("global", detail=found) if found != full else None
        return self.defined(found) if found is not None else None

    def rebind(self, old: Value, new: Value) -> None:
        """A value was changed in place: every name for it means the new one."""
        step(sum(map(len, self.scopes)))
        for scope in self.scopes:
            for name, value in scope.items():
                if value is old:
                    scope[name] = new

    def elements(self, value: Value) -> list[Value] | None:
        """The elements of a tuple, a zip of tuples or a map over one, where they are known."""
        if value.op == "tuple" and not any(each.op == "star" for each in value.args):
            return list(value.args)
        return None

    def pieces(self, value: Value, targets: Sequence[ast.expr]) -> list[Value]:
        """A value unpacked into so many targets."""
        count = len(targets)
        starred = [index for index, each in enumerate(targets) if isinstance(each, ast.Starred)]
        value = self._spread(value, count) if not starred else value
        known = self.elements(value)
        if known is not None and len(known) == count and not starred:
            return known
        both = all(each.op == "tuple" and len(each.args) == count for each in value.args)
        if value.op == "phi" and not starred and both:
            pairs = zip(value.args[0].args, value.args[1].args, strict=True)
            return [a if a is b else self.make("phi", (a, b), detail=value.detail) for a, b in pairs]
        if not starred:
            self._learn_rank(value, count)
        if starred:
            before = starred[0]
            return [
                self.make("item", (value,), detail=i) if i < before else self.make("opaque", (value,))
                for i in range(count)
            ]
        return [self.make("item", (value,), detail=index) for index in range(count)]

    def _spread(self, value: Value, count: int) -> Value:
        """`(*x.shape, h)` unpacked into `count` names says how many dimensions x has."""
        stars = [each for each in value.args if each.op == "star"] if value.op == "tuple" else []
        if len(stars) != 1:
            return value
        inside = stars[0].args[0]
        rank = count - len(value.args) + 1
        if rank < 1:
            return value
        self._learn_rank(inside, rank)
        parts: list[Value] = []
        for each in value.args:
            if each is stars[0]:
                parts.extend(self.make("item", (inside,), detail=index) for index in range(rank))
            else:
                parts.append(each)
        return self.make("tuple", parts)

    def _learn_rank(self, value: Value, count: int) -> None:
        if value.op in ("attr:shape", "size") and len(value.args) == 1:
            self.ranks[value.args[0]] = count
