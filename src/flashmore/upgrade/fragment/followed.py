"""The code of helpers, for a test: functions of the file or of other files, with all that they call."""

import ast
import builtins
from collections.abc import Iterable
from typing import Any

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.emit.words import fresh
from flashmore.upgrade.source.graph import Closure
from flashmore.upgrade.source.module import Found, Module
from flashmore.upgrade.source.scopes import arguments_of, bound_by, copied, dotted, is_note, own_nodes
from flashmore.upgrade.verify.allowed import CONTEXTS

_LIBRARIES = {
    "torch.nn.functional.": "F.", "torch.": "torch.", "math.": "math.", "numpy.": "np.", "einops.": "",
}  # fmt: skip
_MOST = 20
"""So many functions are copied for one attention."""


def of_library(full: str) -> str | None:
    """The name under which a test knows something of torch, math, NumPy or einops."""
    if full == "opt_einsum.contract":
        return "torch.einsum"  # which is the same for two operands
    if full in CONTEXTS:
        return full
    for prefix, name in _LIBRARIES.items():
        if full.startswith(prefix) and full[len(prefix) :].count(".") == 0:
            return name + full[len(prefix) :]
    return None


class Followed:
    """Copies of functions that need nothing around them.

    Args:
        taken: names that mean something else.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = {*taken}
        self.names: dict[ast.AST, str] = {}
        self.functions: list[ast.FunctionDef] = []

    def name(self, closure: Closure) -> str:
        """Copy a function, and say what it is called in the test.

        Raises:
            Refuse: it reads something that has no copy, such as `self`.
        """
        if closure.given or closure.given_named or closure.names or isinstance(closure.node, ast.Lambda):
            raise Refuse("a helper that cannot be cut out")
        return self._function(closure.node, closure.module, without_self=closure.bound is not None)

    def _function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef, module: Module, *, without_self: bool = False
    ) -> str:
        if node in self.names:
            return self.names[node]
        if len(self.names) >= _MOST or isinstance(node, ast.AsyncFunctionDef):
            raise Refuse("a helper that cannot be cut out")
        name = self.names[node] = fresh(node.name, self.taken)
        self.taken.add(name)
        own = {each.arg for each in arguments_of(node.args)} | {
            bound for each in own_nodes(node) if each is not node for bound in bound_by(each)
        }
        copy = _Copy(self, module, own - ({"self"} if without_self else set()))
        body = [each for each in node.body if not is_note(each)]
        arguments = copy.of(node.args)
        if without_self:
            (arguments.posonlyargs or arguments.args).pop(0)
        made = ast.FunctionDef(name, arguments, [copy.of(each) for each in body], [], lineno=0, col_offset=0)
        self.functions.append(made)
        return name

    def called_by(self, body: Iterable[ast.stmt]) -> list[ast.stmt]:
        """The copies that some lines need, those that others call first."""
        needed, ahead = [], list(body)
        by_name = {each.name: each for each in self.functions}
        while ahead:
            for node in ast.walk(ahead.pop()):
                made = by_name.pop(node.id, None) if isinstance(node, ast.Name) else None
                if made is not None:
                    needed.append(made)
                    ahead.append(made)
        return [each for each in self.functions if each in needed]

    def global_name(self, node: ast.Name | ast.Attribute, module: Module) -> ast.expr | None:
        """What stands for a name of a module."""
        full = module.qualified(node) or (node.id if isinstance(node, ast.Name) else "")
        found: Found | str | None = module.definition(full)
        if isinstance(node, ast.Name) and module.holds(node.id):
            found = Found(module, node.id)
        if isinstance(found, Found):
            return self._definition(found)
        text = of_library(found or full)
        if text is None and isinstance(node, ast.Name) and hasattr(builtins, node.id):
            text = node.id
        return ast.parse(text, mode="eval").body if text is not None else None

    def _definition(self, found: Found) -> ast.expr:
        if (function := found.module.functions.get(found.name)) is not None:
            return ast.Name(self._function(function, found.module), ast.Load())
        constant = found.module.constants.get(found.name)
        if constant is None:
            raise Refuse("a helper that cannot be cut out")
        made = _Copy(self, found.module, set()).of(constant)
        assert isinstance(made, ast.expr)
        return made


class _Copy:
    """Copies syntax of one function, with other names for what it does not store itself."""

    def __init__(self, followed: Followed, module: Module, own: set[str]) -> None:
        self.followed = followed
        self.module = module
        self.own = own

    def of(self, node: Any) -> Any:
        """A copy of a node, without annotations and decorators."""
        return copied(node, self._stand_in)

    def _stand_in(self, node: ast.AST) -> Any:
        match node:
            case ast.Name(ctx=ast.Load()) | ast.Attribute(ctx=ast.Load()):
                name = dotted(node).partition(".")[0]
                made = self.followed.global_name(node, self.module) if name and name not in self.own else None
                if made is None and isinstance(node, ast.Name) and name not in self.own:
                    raise Refuse("a helper that cannot be cut out")
                return made
            case ast.arg(arg=name):
                return ast.arg(name)
            case ast.FunctionDef(returns=ast.expr()):
                return self.of(ast.FunctionDef(**{**dict(ast.iter_fields(node)), "returns": None}))
            case ast.AnnAssign(value=None):
                return ast.Pass()
            case ast.AnnAssign(target=target, value=value):
                return ast.Assign([self.of(target)], self.of(value), lineno=0)
        return None
