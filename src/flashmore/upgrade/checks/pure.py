"""Which syntax has no effect: it may be left out, repeated, or read at another time."""

import ast
import re

from flashmore.upgrade.source.module import FUNCTIONAL, Module
from flashmore.upgrade.source.scopes import Function
from flashmore.upgrade.verify.allowed import ATTRIBUTES

_BUILTINS = {
    "abs", "all", "any", "bool", "callable", "complex", "dict", "divmod", "enumerate", "float",
    "format", "frozenset", "getattr", "hasattr", "hash", "id", "int", "isinstance", "issubclass", "len",
    "list", "max", "min", "pow", "range", "repr", "reversed", "round", "set", "slice", "sorted", "str",
    "sum", "tuple", "type", "zip",
}  # fmt: skip
_EFFECT = re.compile(
    r"(rand(n|int|perm)?(_like)?|normal|bernoulli|multinomial|poisson|rrelu|\w*dropout\w*|manual_seed|seed|set_\w+)"
    r"|(random|cuda|backends|distributed|nn\.init)\..*"
)
"""What draws random numbers or changes settings, after the library's name."""
_METHODS = (ATTRIBUTES - {"append", "data"}) | {
    "amax", "amin", "argmax", "argmin", "cpu", "cuda", "dim", "element_size", "get", "get_device",
    "items", "keys", "lower", "ndimension", "new_zeros", "permute", "split", "startswith", "endswith",
    "upper", "values", "type_as", "unbind", "chunk", "tolist", "numpy", "is_floating_point",
    "is_complex", "masked_fill", "where", "format", "t", "matmul", "bmm", "mul", "log_softmax",
    "argsort", "sort", "topk", "bitwise_and", "bitwise_or", "logical_and", "logical_or", "movedim",
    "flatten", "index_select", "new", "nelement",
}  # fmt: skip
"""Methods of tensors, dictionaries and strings that change nothing."""


def is_inplace_name(name: str) -> bool:
    """Whether a method's name says that it works in place: `mul_`, but not `__len__`."""
    return name.endswith("_") and not name.endswith("__")


def is_pure(node: ast.AST, module: Module) -> bool:
    """Whether a node itself, apart from its parts, has no effect."""
    match node:
        case ast.Call(func=func):
            return _is_pure_call(func, node, module)
        case ast.Attribute(ctx=ast.Store() | ast.Del()) | ast.Subscript(ctx=ast.Store() | ast.Del()):
            return False
        case ast.AugAssign() | ast.Assert() | ast.Raise() | ast.Yield() | ast.YieldFrom() | ast.Await():
            return False
    return True


def _is_pure_call(func: ast.expr, call: ast.Call, module: Module) -> bool:
    if any(each.arg in ("out", "inplace") for each in call.keywords):
        return False
    full = module.qualified(func)
    last = full.rsplit(".", 1)[-1]
    if full.startswith(("torch.", FUNCTIONAL, "math.", "cmath.", "numpy.", "einops.", "opt_einsum.")):
        name = full.removeprefix(FUNCTIONAL + ".").removeprefix("torch.").removeprefix("numpy.")
        return not is_inplace_name(last) and _EFFECT.fullmatch(name) is None
    if isinstance(func, ast.Attribute) and func.attr == "scaled_dot_product_attention":
        return True
    if isinstance(func, ast.Name):
        known = module.functions.get(func.id)
        return func.id in _BUILTINS if known is None else _is_pure_function(known, module, func.id)
    if isinstance(func, ast.Attribute):
        on_self = isinstance(func.value, ast.Name) and func.value.id == "self"
        return not full and not on_self and func.attr in _METHODS and not is_inplace_name(func.attr)
    return False


def _is_pure_function(function: Function, module: Module, name: str) -> bool:
    """Whether a function of the same file, such as `exists(x)`, only returns what has no effect."""
    match function.body:
        case [*notes, ast.Return(value=ast.expr() as value)] if all(isinstance(e, ast.Expr) for e in notes):
            calls_itself = any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(value))
            inside = [each for statement in function.body for each in ast.walk(statement)]
            return not calls_itself and all(is_pure(each, module) for each in inside)
    return False
