"""What kind of thing `self.x` is, from the expressions that the class stores there."""

import ast
from dataclasses import dataclass

from flashmore.upgrade.source.classes import Class
from flashmore.upgrade.source.module import FUNCTIONAL, Module

_DROPOUTS = ("torch.nn.Dropout", "torch.nn.modules.dropout.Dropout", "torch.nn.modules.Dropout")
_LAYERS = {
    "Linear", "Conv1d", "Conv2d", "Conv3d", "LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm1d",
    "BatchNorm2d", "BatchNorm3d", "InstanceNorm2d", "Embedding", "ReLU", "GELU", "SiLU", "Tanh",
    "Sigmoid", "LeakyReLU", "ELU", "PReLU", "Softplus",
}  # fmt: skip


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


UNKNOWN = Kind("unknown")


@dataclass(frozen=True)
class Attribute:
    """`self.x`: the path to write it, the class it was found in, its name."""

    path: str
    owner: Class | None
    name: str

    def __str__(self) -> str:
        return self.path


def kind_of(attribute: Attribute, module: Module) -> Kind:
    """What an attribute is, where all that is stored there agrees."""
    if attribute.owner is None or module.is_replaced(attribute.name):
        return UNKNOWN
    expressions = [
        *attribute.owner.assignments(attribute.name),
        *(
            each
            for below in module.below(attribute.owner)
            for each in below.own_assignments.get(attribute.name, ())
        ),
    ]
    found = [kind for expression in expressions for kind in _kinds(expression, module)]
    if not found:
        return UNKNOWN
    rest = {kind.name for kind in found} - {"none", "identity"}
    main = next((kind for kind in found if kind.name not in ("none", "identity")), found[0])
    if len(rest) > 1 or (len(rest) == 1 and "unknown" in rest):
        return UNKNOWN
    others = frozenset(kind.name for kind in found) - {main.name}
    return Kind(main.name, others, main.expression, main.detail)


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
    last = full.rsplit(".", 1)[-1]
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if full.startswith("torch.nn") and last == "Softmax":
        return Kind("softmax", expression=call)
    if full in _DROPOUTS:
        return Kind("dropout", expression=call)
    if full.startswith("torch.nn") and last == "Identity":
        return Kind("identity", expression=call)
    if full.startswith("torch.nn") and last == "Parameter":
        return Kind("parameter", expression=call)
    if full.startswith("torch.nn") and last in _LAYERS:
        return Kind("layer", expression=call, detail=last)
    if full in ("functools.partial", "partial"):
        return Kind("function", expression=call)
    if name in module.classes:
        return Kind("class", expression=call, detail=name)
    return Kind("unknown", expression=call)
