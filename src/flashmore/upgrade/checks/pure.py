"""Which syntax has no effect: it may be left out, repeated, or read at another time."""

import ast
import re

from flashmore.upgrade.source.attributes import Attribute, kind_of
from flashmore.upgrade.source.module import FUNCTIONAL, Class, Module
from flashmore.upgrade.source.nodes import Blocks
from flashmore.upgrade.source.scopes import Function, arguments_of, bound_by
from flashmore.upgrade.verify.allowed import ATTRIBUTES

_BUILTINS = {
    "abs", "all", "any", "bool", "callable", "complex", "dict", "divmod", "enumerate", "float",
    "format", "frozenset", "getattr", "hasattr", "hash", "id", "int", "isinstance", "issubclass", "len",
    "list", "max", "min", "pow", "range", "repr", "reversed", "round", "set", "slice", "sorted", "str",
    "sum", "tuple", "type", "zip",
}  # fmt: skip
_CONSUMES = {
    "all", "any", "dict", "enumerate", "frozenset", "list", "max", "min", "set", "sorted", "sum", "tuple",
    "zip",
}  # fmt: skip
"""Builtins that take all that an iterator gives."""
_EFFECT = re.compile(
    r"(rand(n|int|perm)?(_like)?|normal|bernoulli|multinomial|poisson|rrelu|\w*dropout\w*|manual_seed|seed|set_\w+)"
    r"|(random|cuda|backends|distributed|nn\.init|utils|nn\.utils)\..*|autograd\.set_grad_enabled"
    r"|(no_grad|enable_grad|inference_mode)|copyto|put\w*|place"
)
"""What draws random numbers, changes settings or its arguments, after the library's name."""
_METHODS = (ATTRIBUTES - {"append", "data"}) | {
    "amax", "amin", "argmax", "argmin", "cpu", "cuda", "dim", "element_size", "get", "get_device",
    "items", "keys", "lower", "ndimension", "new_zeros", "permute", "split", "startswith", "endswith",
    "upper", "values", "type_as", "unbind", "chunk", "tolist", "numpy", "is_floating_point",
    "is_complex", "masked_fill", "where", "format", "t", "matmul", "bmm", "mul", "log_softmax",
    "argsort", "sort", "topk", "bitwise_and", "bitwise_or", "logical_and", "logical_or", "movedim",
    "flatten", "index_select", "new", "nelement",
}  # fmt: skip
"""Methods of tensors, dictionaries and strings that change nothing."""


_MADE = {"ones", "zeros", "empty", "full", "eye", "ones_like", "zeros_like", "empty_like", "full_like"}
"""Functions of torch whose result shares no memory."""


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


def is_layer(node: ast.Attribute, owner: Class | None, module: Module) -> bool:
    """Whether `self.x` is something that the class stores, such as a layer, and no method."""
    if not (isinstance(node.value, ast.Name) and node.value.id == "self") or owner is None:
        return False
    attribute = Attribute(f"self.{node.attr}", owner, node.attr)
    return bool(owner.assignments(node.attr)) or kind_of(attribute, module).name != "unknown"


def changes_nothing(
    call: ast.Call, owner: Class | None, module: Module, within: frozenset[Function] = frozenset()
) -> bool:
    """Whether a call of a method of the class changes no attribute, no argument and no setting.

    It may call layers and other such methods; only its own numbers may be changed in place.
    """
    match call.func:
        case ast.Attribute(value=ast.Name(id="self"), attr=name) if owner is not None:
            method = owner.method(name)
        case _:
            return False
    if method is None or method in within or any(name in each.own_methods for each in module.below(owner)):
        return False
    if any(getattr(each, "id", "") not in ("staticmethod", "classmethod") for each in method.decorator_list):
        return False

    def harmless(node: ast.AST) -> bool:
        if isinstance(node, ast.AugAssign):
            return isinstance(node.target, ast.Name) and _is_fresh(node.target.id, method)
        if isinstance(node, ast.Call) and not is_pure(node, module):
            layer = isinstance(node.func, ast.Attribute) and is_layer(node.func, owner, module)
            return layer or changes_nothing(node, owner, module, within | {method})
        return not isinstance(node, (ast.Global, ast.Nonlocal)) and (
            isinstance(node, (ast.Assert, ast.Raise)) or is_pure(node, module)
        )

    return all(harmless(node) for statement in method.body for node in ast.walk(statement))


def _is_fresh(name: str, method: Function) -> bool:
    """Whether a name always means a number or a result of the method's own, never a tensor that it was given.

    An argument whose default is a number is one.
    """
    spec = method.args
    positional = [*spec.posonlyargs, *spec.args]
    given: list[tuple[ast.arg, ast.expr | None]] = [*zip(spec.kwonlyargs, spec.kw_defaults, strict=True)]
    given += zip(reversed(positional), reversed(spec.defaults), strict=False)
    numbers = {
        arg.arg for arg, default in given if isinstance(default, ast.Constant) and default.value is not None
    }
    if name in {each.arg for each in arguments_of(spec)} - numbers:
        return False
    own = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare)
    made: list[ast.AST] = []
    for node in ast.walk(method):
        if isinstance(node, ast.AugAssign):
            made.append(node.target)
        elif isinstance(node, ast.Assign) and isinstance(node.value, own):
            made += node.targets
    return all(node in made for node in ast.walk(method) if name in bound_by(node))


def changes_own_memory(store: ast.Subscript, blocks: Blocks, module: Module) -> bool:
    """Whether `x[i] = …` follows `x = torch.ones(…)` in its block, and nothing else has that memory."""
    name = store.value.id if isinstance(store.value, ast.Name) else None
    for statement, place in blocks.places.items():
        if not (isinstance(statement, ast.Assign) and statement.targets == [store]):
            continue
        for before in reversed(place.block[: place.index]):
            if not any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(before)):
                continue
            match before:
                case ast.Assign(targets=[ast.Name(id=made)], value=ast.Call(func=func)):
                    return made == name and module.qualified(func).removeprefix("torch.") in _MADE
            return False
    return False
