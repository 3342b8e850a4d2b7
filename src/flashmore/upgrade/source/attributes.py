"""What kind of thing `self.x` is, from the expressions that the class stores there."""

import ast
import re
from dataclasses import dataclass, replace

from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.module import FUNCTIONAL, Module
from flashmore.upgrade.source.scopes import arguments_of, is_note

_DROPOUTS = ("torch.nn.Dropout", "torch.nn.modules.dropout.Dropout", "torch.nn.modules.Dropout")
_LAYERS = {
    "Linear", "Conv1d", "Conv2d", "Conv3d", "LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm1d",
    "BatchNorm2d", "BatchNorm3d", "InstanceNorm2d", "Embedding", "ReLU", "GELU", "SiLU", "Tanh",
    "Sigmoid", "LeakyReLU", "ELU", "PReLU", "Softplus",
}  # fmt: skip

_OF_VALUES = {"tensor", "as_tensor", "Tensor", "FloatTensor"}
"""Functions that make a tensor of the numbers in a list."""
_OF_SIZES = {"empty", "ones", "rand", "randn", "zeros", "Tensor", "FloatTensor"}
_KEEP_SHAPE = {
    "abs", "bfloat16", "clone", "contiguous", "cpu", "cuda", "detach", "double", "exp", "fill", "float",
    "half", "log", "neg", "normal", "requires_grad", "rsqrt", "sqrt", "to", "type", "uniform", "zero",
}  # fmt: skip
"""Methods whose arguments cannot widen a tensor."""
_FOLLOWED = re.compile(r"(?i)soft|drop|ident|mask|bias")
"""The classes of other files that are read: they may stand between scores and values."""


@dataclass(frozen=True)
class Kind:
    """What an attribute is.

    Args:
        name: "softmax", "dropout", "identity", "none", "layer", "function", "class", "parameter", "buffer",
            "number", "unknown".
        maybe: other kinds that it may be instead, such as identity.
        expression: what made it.
        detail: the layer's or the class's name.
    """

    name: str
    maybe: frozenset[str] = frozenset()
    expression: ast.expr | None = None
    detail: str = ""
    made: Class | None = None
    """Of "class", the class."""
    home: Module | None = None
    """The module that the expression stands in."""


UNKNOWN = Kind("unknown")


@dataclass(frozen=True)
class Attribute:
    """`self.x`: the path to write it, the class it was found in, its name."""

    path: str
    owner: Class | None
    name: str

    def home(self, module: Module) -> Module:
        """The module of the class that stores it; else the one that is given."""
        holder = self.owner.holder(self.name) if self.owner is not None else None
        return holder.module if holder is not None else module

    def __str__(self) -> str:
        return self.path


def kind_of(attribute: Attribute, module: Module) -> Kind:
    """What an attribute is, where all that is stored there agrees."""
    found = [
        replace(kind, home=home)
        for expression, home in stored_in(attribute, module)
        for kind in _kinds(expression, home)
    ]
    if not found:
        return UNKNOWN
    rest = {kind.name for kind in found} - {"none", "identity"}
    main = next((kind for kind in found if kind.name not in ("none", "identity")), found[0])
    if len(rest) > 1 or (len(rest) == 1 and "unknown" in rest):
        return UNKNOWN
    others = frozenset(kind.name for kind in found) - {main.name}
    return replace(main, maybe=others)


def rank_of(attribute: Attribute, module: Module) -> int | None:
    """How many dimensions a stored tensor has, where all that is stored there says the same."""
    stored = (made for made, _ in stored_in(attribute, module))
    found = (made_sizes(made) if isinstance(made, ast.Call) else None for made in stored)
    ranks = {None if sizes is None else len(sizes) for sizes in found}
    return ranks.pop() if len(ranks) == 1 else None


def stored_in(attribute: Attribute, module: Module) -> list[tuple[ast.expr, Module]]:
    """All that is stored in an attribute, with the modules it stands in; nothing if that is not known."""
    owner = attribute.owner
    if owner is None or module.is_replaced(attribute.name) or owner.replaces(attribute.name, module):
        return []
    classes = [each for each in (owner.holder(attribute.name), *owner.below(module)) if each is not None]
    if any(each.module.is_replaced(attribute.name) for each in classes):
        return []
    return [(made, each.module) for each in classes for made in each.own_assignments.get(attribute.name, ())]


def made_sizes(node: ast.expr) -> list[str] | None:
    """The shape that is surely made, as by `nn.Parameter(10 * torch.ones(h, 1, 1).log())`."""
    match node:
        case ast.Constant():
            return []
        case ast.BinOp(left=left, right=right):
            one, two = made_sizes(left), made_sizes(right)
            return one if two == [] else two if one == [] else None
        case ast.Call(
            func=ast.Attribute(attr="full"), args=[ast.Tuple(elts=sizes) | ast.List(elts=sizes), *_]
        ):
            return _sizes(sizes)
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=args):
            listed = args[0].elts if args and isinstance(args[0], ast.Tuple | ast.List) else None
            if name in _OF_VALUES and listed is not None:
                numbers = all(isinstance(each, ast.Constant) for each in listed)
                return [str(len(listed))] if numbers else None
            if name in ("tensor", "as_tensor"):
                return [] if args and isinstance(args[0], ast.Constant) else None
            if name in _OF_SIZES:
                alone = len(args) == 1 and listed is None and not isinstance(args[0], ast.Constant)
                return None if alone else _sizes(args if listed is None else listed)  # it may be a tuple
            if name in ("Parameter", "log", "exp", "sqrt") and len(args) == 1:
                return made_sizes(args[0])
            if isinstance(node.func, ast.Attribute) and name.rstrip("_") in _KEEP_SHAPE:
                return made_sizes(node.func.value)
    return None


def _sizes(given: list[ast.expr]) -> list[str] | None:
    """The texts of sizes that are given one by one."""
    return None if any(isinstance(each, ast.Starred) for each in given) else [*map(ast.unparse, given)]


def may_be_dropout(attribute: Attribute) -> bool:
    """Whether an attribute may be a `torch.nn.Dropout`: one is stored there, an argument, or nothing seen."""
    owner = attribute.owner
    holder = owner.holder(attribute.name) if owner is not None else None
    if holder is None:
        return True
    made = holder.own_assignments.get(attribute.name, ())
    init = holder.own_methods.get("__init__")
    given = {each.arg for each in arguments_of(init.args)} if init is not None else set()
    if any(isinstance(each, ast.Name) and each.id in given for each in made):
        return True
    return any(kind.name == "dropout" for each in made for kind in _kinds(each, holder.module))


def _kinds(expression: ast.expr, module: Module) -> list[Kind]:
    if isinstance(expression, ast.IfExp):
        return [*_kinds(expression.body, module), *_kinds(expression.orelse, module)]
    if isinstance(expression, ast.Constant):
        value = expression.value
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return [Kind("none" if value is None else "number" if number else "unknown", expression=expression)]
    if isinstance(expression, ast.Call):
        return [_made_by(expression, module)]
    full = module.qualified(expression)
    if full.startswith(("torch.", FUNCTIONAL)) or isinstance(expression, ast.Lambda):
        return [Kind("function", expression=expression)]
    return [Kind("unknown", expression=expression)]


def _made_by(call: ast.Call, module: Module) -> Kind:
    full = module.qualified(call.func)
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    own = module.classes.get(name)
    if own is None and _FOLLOWED.search((full or name).rpartition(".")[2]):
        own, full = module.class_of(full or name), module.of_library(full or name)
    if own is not None:
        full = library_name(own)
    last = full.rsplit(".", 1)[-1]
    if full in _DROPOUTS or (own is not None and library_name(own, passing=True) in _DROPOUTS):
        return Kind("dropout", expression=call)
    if full.startswith("torch.nn") and last in ("Softmax", "Identity", "Parameter"):
        return Kind(last.lower(), expression=call)
    if full.startswith("torch.nn") and last in _LAYERS:
        return Kind("layer", expression=call, detail=last)
    if full in ("functools.partial", "partial"):
        return Kind("function", expression=call)
    if own is not None:
        return Kind("class", expression=call, detail=own.node.name, made=own)
    return Kind("unknown", expression=call)


def library_name(found: Class, passing: bool = False) -> str:
    """The full name of what a class that adds nothing inherits from; empty where it adds something.

    Args:
        found: the class.
        passing: whether it may define an `__init__` that only calls the inherited one.
    """
    node = found.node
    empty = all(
        isinstance(each, ast.Pass) or is_note(each) or (passing and _passes_on(each)) for each in node.body
    )
    if not empty or node.keywords or len(node.bases) != 1 or node.decorator_list:
        return ""
    (base,) = found.bases or ("",)
    return library_name(base, passing) if isinstance(base, Class) else found.module.of_library(base)


def _passes_on(statement: ast.stmt) -> bool:
    """Whether a statement is an `__init__` that only calls the inherited one, with names and constants."""
    if not isinstance(statement, ast.FunctionDef) or statement.name != "__init__" or statement.decorator_list:
        return False
    match [each for each in statement.body if not is_note(each)]:
        case [ast.Expr(ast.Call(ast.Attribute(ast.Call(ast.Name("super")), "__init__"), args, named))]:
            given = (*args, *(each.value for each in named))
            return all(isinstance(each, (ast.Name, ast.Constant)) for each in given)
    return False
