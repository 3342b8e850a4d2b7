"""Which syntax has no effect: it may be left out, repeated, or read at another time."""

import ast
import builtins
import re
from functools import lru_cache

from flashmore.upgrade.source.attributes import Attribute, kind_of
from flashmore.upgrade.source.module import FUNCTIONAL, Class, Module
from flashmore.upgrade.source.nodes import Blocks
from flashmore.upgrade.source.operations import NEW
from flashmore.upgrade.source.scopes import Function, arguments_of, bound_by
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
_METHODS = {each for each in ATTRIBUTES if not each.endswith("_")} - {"append", "data"} | {
    "amax", "amin", "argmax", "argmin", "cpu", "cuda", "dim", "element_size", "get", "get_device",
    "items", "keys", "lower", "ndimension", "new_zeros", "permute", "split", "startswith", "endswith",
    "upper", "values", "type_as", "unbind", "chunk", "tolist", "numpy", "is_floating_point",
    "is_complex", "is_integer", "masked_fill", "where", "format", "t", "matmul", "bmm", "mul", "log_softmax",
    "argsort", "sort", "topk", "bitwise_and", "bitwise_or", "logical_and", "logical_or", "movedim",
    "flatten", "index_select", "new", "nelement",
}  # fmt: skip
"""Methods of tensors, dictionaries and strings that change nothing."""


_MAY_WORK_IN_PLACE = {
    "ReLU", "ReLU6", "SiLU", "Mish", "SELU", "Hardswish", "Hardsigmoid", "ELU", "CELU", "LeakyReLU", "RReLU",
    "Threshold", "Hardtanh", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout",
}  # fmt: skip
"""Layers of torch that take `inplace`, by position too."""


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
    if isinstance(func, ast.Attribute):
        on_self = isinstance(func.value, ast.Name) and func.value.id == "self"
        return not full and not on_self and func.attr in _METHODS - stateful(module)
    return False


@lru_cache(maxsize=1)  # of the file that is searched, not once for each of its places
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


@lru_cache(maxsize=1)
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


def _is_plain(method: Function, module: Module) -> bool:
    """Whether a method only computes, and calls nothing but functions of libraries and builtins."""
    for node in (inner for statement in method.body for inner in ast.walk(statement)):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name not in _BUILTINS | {"super"}:
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


def is_layer(node: ast.Attribute, owner: Class | None, module: Module) -> bool:
    """Whether `self.x` is something that the class stores, such as a layer, and no method."""
    if not (isinstance(node.value, ast.Name) and node.value.id == "self") or owner is None:
        return False
    attribute = Attribute(f"self.{node.attr}", owner, node.attr)
    return bool(owner.assignments(node.attr)) or kind_of(attribute, module).name != "unknown"


def keeps_arguments(call: ast.Call, owner: Class | None, module: Module) -> bool:
    """Whether a layer `self.x` does not work in place, as far as the class says what it is."""
    if not isinstance(call.func, ast.Attribute):
        return False
    kind = kind_of(Attribute(f"self.{call.func.attr}", owner, call.func.attr), module)
    if kind.name == "class":
        return changes_nothing(call, owner, module)
    known = kind.name in ("layer", "dropout", "identity", "softmax")
    return known and isinstance(kind.expression, ast.Call) and not makes_inplace(kind.expression)


Reader = tuple[Function, Class | None]
"""A function of the file, and the class that its `self` is of."""


def called(call: ast.Call, owner: Class | None, module: Module) -> Reader | None:
    """The function of the file that a call runs: a function, a method of the class, a layer's `forward`."""
    match call.func:
        case ast.Name(id=name) if name in module.functions:
            return module.functions[name], None
        case ast.Attribute(value=ast.Name(id="self"), attr=name) if owner is not None:
            if any(name in each.own_methods for each in module.below(owner)):
                return None
            if (method := owner.method(name)) is not None:
                return method, owner
            kind = kind_of(Attribute(f"self.{name}", owner, name), module)
            made = module.classes.get(kind.detail) if kind.name == "class" else None
            if made is not None and (forward := made.method("forward")) and not any(module.below(made)):
                return forward, made
    return None


def changes_nothing(
    call: ast.Call,
    owner: Class | None,
    module: Module,
    reads: frozenset[str] = frozenset(),
    within: frozenset[Function] = frozenset(),
) -> bool:
    """Whether a call of something in this file changes no argument, no setting, and nothing that is read.

    It may call layers and other such functions; only its own numbers may be changed in place.

    Args:
        call: the call.
        owner: the class of `self` where it stands.
        module: the file.
        reads: the attributes of `self` that must stay. Others may be stored.
        within: the functions that are being read.
    """
    found = called(call, owner, module)
    if found is None or found[0] in within:
        return False
    function, of = found
    if any(
        getattr(each, "id", "") not in ("staticmethod", "classmethod") for each in function.decorator_list
    ):
        return False

    positional = [each.arg for each in function.args.args]

    def harmless(node: ast.AST) -> bool:
        match node:
            case ast.AugAssign(target=ast.Name(id=name)):
                return _is_fresh(name, function)
            case (
                ast.AugAssign(target=ast.Subscript(value=ast.Name(id=name)))
                | ast.Subscript(value=ast.Name(id=name), ctx=ast.Store())
                | ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append"))
                | ast.Call(func=ast.Name(id="tuple" | "list"), args=[ast.Name(id=name)])
            ):
                return _is_fresh(name, function, _CONTAINERS)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                return owner is of and name not in reads
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="self"), attr="register_buffer"), args=[name, *_]
            ):
                return owner is of and isinstance(name, ast.Constant) and name.value not in reads
            case ast.Call(func=ast.Name(id=name)) if name in positional:
                given = dict(zip(positional, call.args, strict=False)).get(name)
                return isinstance(given, ast.Lambda) and all(
                    is_pure(each, module) for each in ast.walk(given)
                )
            case ast.Call(func=func) if not is_pure(node, module):
                layer = isinstance(func, ast.Attribute) and is_layer(func, of, module)
                return (layer and keeps_arguments(node, of, module)) or changes_nothing(
                    node, of, module, reads, within | {function}
                )
            case ast.Global() | ast.Nonlocal():
                return False
        return isinstance(node, (ast.Assert, ast.Raise)) or is_pure(node, module)

    return all(harmless(node) for statement in function.body for node in ast.walk(statement))


_CONTAINERS = (ast.List, ast.Dict, ast.ListComp, ast.DictComp, ast.BinOp)


def _is_fresh(
    name: str,
    method: Function,
    own: tuple[type[ast.expr], ...] = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare),
) -> bool:
    """Whether a name always means a result of the method's own, by the syntax that makes it.

    A number is one, and so is an argument whose default is a number; a tensor that it was given is not.
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
    made: list[ast.AST] = []
    for node in ast.walk(method):
        if isinstance(node, ast.AugAssign):
            made.append(node.target)
        elif isinstance(node, ast.Assign) and (
            isinstance(node.value, own) or (own is _CONTAINERS and _is_copy(node.value))
        ):
            made += node.targets
        elif isinstance(node, ast.AnnAssign) and isinstance(node.value, own):
            made.append(node.target)
    return all(node in made for node in ast.walk(method) if name in bound_by(node))


def _is_copy(node: ast.expr) -> bool:
    """`list(x)` and the like, which make something of their own."""
    copies = ("list", "dict", "set", "tuple", "sorted", "sum")
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in copies


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
                    return made == name and module.qualified(func).removeprefix("torch.") in NEW
            return False
    return False


def makes_inplace(made: ast.Call) -> bool:
    """Whether a layer may be made to work in place."""
    given = [each.value for each in made.keywords if each.arg == "inplace"]
    if _class_of(made) in _MAY_WORK_IN_PLACE:
        given += [
            each for each in made.args if isinstance(each, ast.Constant) and isinstance(each.value, bool)
        ]
    return any(not (isinstance(each, ast.Constant) and each.value is False) for each in given)


def _class_of(made: ast.Call) -> str:
    return made.func.attr if isinstance(made.func, ast.Attribute) else getattr(made.func, "id", "")
