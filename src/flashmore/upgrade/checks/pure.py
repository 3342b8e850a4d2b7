"""Which syntax has no effect: it may be left out, repeated, or read at another time."""

import ast
import builtins
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from flashmore.upgrade.source.module import FUNCTIONAL, Module
from flashmore.upgrade.source.operations import NEW
from flashmore.upgrade.source.scopes import Function
from flashmore.upgrade.verify.allowed import ATTRIBUTES

_BUILTINS = {
    "abs", "all", "any", "bool", "callable", "complex", "dict", "divmod", "enumerate", "float",
    "format", "frozenset", "getattr", "hasattr", "hash", "id", "int", "isinstance", "issubclass", "len",
    "list", "max", "min", "pow", "range", "repr", "reversed", "round", "set", "slice", "sorted", "str",
    "sum", "tuple", "type", "zip",
}  # fmt: skip
_EXCEPTIONS = {
    name
    for name, each in vars(builtins).items()
    if isinstance(each, type) and issubclass(each, BaseException)
}
_CONSUMES = {
    "all", "any", "dict", "enumerate", "frozenset", "list", "max", "min", "set", "sorted", "sum", "tuple",
    "zip",
}  # fmt: skip
"""Builtins that take all that an iterator gives."""
_ONE_ARGUMENT = {"abs", "exp", "log", "prod", "sqrt", "square", "sum"}
"""Functions of NumPy that change nothing; a second argument may be where the result is stored."""
_NUMPY = {"arange", "array", "asarray", "eye", "full", "linspace", "ones", "triu", "tril", "where", "zeros"}
_EFFECT = re.compile(
    r"(rand(n|int|perm)?(_like)?|normal|bernoulli|multinomial|poisson|rrelu|\w*dropout\w*|manual_seed|seed|set_\w+)"
    r"|(no_grad|enable_grad|inference_mode)"
    r"|(?!(Tensor|linalg|special|fft|nn|amp)\.).*\..*"
    r"|nn\.(?!(Softmax|Dropout|Identity|ReLU|GELU|SiLU|Sigmoid|Tanh)$).*"
)
"""What draws random numbers, changes settings or its arguments, or is not known, after the library's name."""
_ONLY_MEASURES = {
    "torch.profiler.record_function", "torch.autograd.profiler.record_function", "torch.cuda.nvtx.range",
}  # fmt: skip
"""Contexts of profilers, which change nothing in them."""
_METHODS = {each for each in ATTRIBUTES if not each.endswith("_")} - {"append", "data"} | {
    "amax", "amin", "argmax", "argmin", "cpu", "cuda", "dim", "element_size", "get", "get_device",
    "items", "keys", "lower", "ndimension", "new_zeros", "permute", "split", "startswith", "endswith",
    "upper", "values", "type_as", "unbind", "chunk", "tolist", "numpy", "is_floating_point",
    "is_complex", "is_integer", "masked_fill", "where", "format", "t", "matmul", "bmm", "mul", "log_softmax",
    "argsort", "sort", "topk", "bitwise_and", "bitwise_or", "logical_and", "logical_or", "movedim",
    "flatten", "index_select", "new", "nelement", "parameters", "buffers",
}  # fmt: skip
"""Methods of tensors, modules, dictionaries and strings that change nothing."""


def is_inplace_name(name: str) -> bool:
    """Whether a method's name says that it works in place: `mul_`, but not `__len__`."""
    return len(name) > 1 and name.endswith("_") and not name.endswith("__")


def is_pure(node: ast.AST, module: Module) -> bool:
    """Whether a node itself, apart from its parts, has no effect."""
    match node:
        case ast.Call(func=func):
            return _is_pure_call(func, node, module)
        case ast.Attribute(ctx=ast.Store() | ast.Del()) | ast.Subscript(ctx=ast.Store() | ast.Del()):
            return False
        case ast.Attribute(attr=name):
            return name not in _properties(module)
        case ast.AugAssign() | ast.Assert() | ast.Raise() | ast.Yield() | ast.YieldFrom() | ast.Await():
            return False
    return True


def _is_pure_call(func: ast.expr, call: ast.Call, module: Module) -> bool:
    if any(each.arg in ("out", "inplace") for each in call.keywords):
        return False
    if any(each.arg == "key" and not isinstance(each.value, ast.Lambda) for each in call.keywords):
        return False  # it is called
    full = module.qualified(func)
    last = full.rsplit(".", 1)[-1]
    if full.startswith("numpy."):
        return last in _NUMPY or (last in _ONE_ARGUMENT and len(call.args) == 1)
    if full.startswith(("math.", "cmath.", "einops.", "opt_einsum.", "inspect.is")):
        return True
    if full in _ONLY_MEASURES:
        return True
    if full.startswith("torch."):
        name = full.removeprefix(FUNCTIONAL + ".").removeprefix("torch.")
        inplace = full.startswith(FUNCTIONAL) and any(
            isinstance(each, ast.Constant) and each.value is True for each in call.args[1:]
        )  # relu(x, True)
        return not is_inplace_name(last) and not inplace and _EFFECT.fullmatch(name) is None
    if isinstance(func, ast.Attribute) and func.attr == "scaled_dot_product_attention":
        return True
    if isinstance(func, ast.Name):
        known = module.functions.get(func.id)
        if func.id in _CONSUMES and len(call.args) == 1 and isinstance(call.args[0], ast.Name):
            return False  # which may be an iterator
        if known is None:
            return func.id in _BUILTINS or (func.id in _EXCEPTIONS and func.id not in module.meanings)
        return _is_pure_function(known, module, func.id)
    if isinstance(func, ast.Attribute) and is_inplace_name(func.attr):
        return func.attr[:-1] in _METHODS and _is_new(func.value, module)
    if isinstance(func, ast.Attribute):
        on_self = isinstance(func.value, ast.Name) and func.value.id == "self"
        return not full and not on_self and func.attr in _METHODS - stateful(module)
    return False


def unwrapped(statements: Iterable[ast.stmt], module: Module) -> Iterator[ast.stmt]:
    """Statements, and those in a `with` of a profiler's in its place."""
    for each in statements:
        items = each.items if isinstance(each, ast.With) else []
        if items and all(_only_measures(item, module) for item in items):
            yield from unwrapped(each.body, module)  # type: ignore[attr-defined]
        else:
            yield each


def _only_measures(item: ast.withitem, module: Module) -> bool:
    made = item.context_expr
    of_profiler = isinstance(made, ast.Call) and module.qualified(made.func) in _ONLY_MEASURES
    return of_profiler and item.optional_vars is None


def _is_new(node: ast.expr, module: Module) -> bool:
    """Whether an expression makes a tensor that nothing else holds yet, such as `torch.ones(3).triu_()`."""
    match node:
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if is_inplace_name(name):
            return _is_new(value, module)
        case ast.Call(func=func):
            return makes_new(func, module)
    return False


def makes_new(func: ast.expr, module: Module) -> bool:
    """Whether a function makes a tensor: `torch.ones` or `x.new_ones`."""
    method = func.attr if isinstance(func, ast.Attribute) and not module.qualified(func) else ""
    own = any(method in each.own_methods for each in module.classes.values())
    of_tensors = method.startswith("new_") and method in NEW and not own
    return of_tensors or module.qualified(func).removeprefix("torch.") in NEW


@lru_cache(maxsize=2)  # of the file that is searched beside one of its changed copies
def stateful(module: Module) -> frozenset[str]:
    """The names of the file's methods and properties that may have effects; all of them with a setter.

    An attribute or a method of that name may be one of them, whatever the object.
    """
    found = set()
    for owner in ast.walk(module.tree):
        for each in owner.body if isinstance(owner, ast.ClassDef) else ():
            if isinstance(each, Function) and (_has_setter(each) or not _is_plain(each, module)):
                found.add(each.name)
    return frozenset(found)


@lru_cache(maxsize=2)
def _properties(module: Module) -> frozenset[str]:
    """The names of those of them that run where an attribute is read."""
    decorated = {
        each.name
        for owner in ast.walk(module.tree)
        for each in (owner.body if isinstance(owner, ast.ClassDef) else ())
        if isinstance(each, Function)
        and any(getattr(by, "id", "") not in ("staticmethod", "classmethod") for by in each.decorator_list)
    }
    return frozenset(decorated & stateful(module))


def _has_setter(method: Function) -> bool:
    return any(isinstance(each, ast.Attribute) and each.attr == "setter" for each in method.decorator_list)


def _is_plain(method: Function, module: Module, within: frozenset[str] = frozenset()) -> bool:
    """Whether a method only computes, and calls nothing but functions of libraries, builtins and the like.

    Args:
        method: the method.
        module: its file.
        within: the functions that are being read.
    """
    for node in (inner for statement in method.body for inner in ast.walk(statement)):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name not in _BUILTINS | {"super"}:
                known = None if name in within else module.functions.get(name)
                if known is None or known.decorator_list or not _is_plain(known, module, within | {name}):
                    return False
            case ast.Call(func=ast.Attribute(attr=name) as func) if not module.qualified(func):
                if name not in _METHODS:
                    return False
            case ast.Attribute(ctx=ast.Store() | ast.Del()) | ast.Subscript(ctx=ast.Store() | ast.Del()):
                return False
            case (
                ast.AugAssign() | ast.Yield() | ast.YieldFrom() | ast.Await() | ast.Global() | ast.Nonlocal()
            ):
                return False
    return True


def _is_pure_function(function: Function, module: Module, name: str) -> bool:
    """Whether a function of the same file, such as `exists(x)`, only returns what has no effect."""
    match function.body:
        case [*notes, ast.Return(value=ast.expr() as value)] if all(isinstance(e, ast.Expr) for e in notes):
            calls_itself = any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(value))
            inside = [each for statement in function.body for each in ast.walk(statement)]
            return not calls_itself and all(is_pure(each, module) for each in inside)
    return False
