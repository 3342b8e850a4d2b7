"""What multiplies the scores: a Python number, a learned scale, or something that SDPA cannot take."""

import ast
import re

from flashmore.upgrade.budget import step, walk
from flashmore.upgrade.source.attributes import Attribute, kind_of, made_sizes
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.module import Module

_ARITHMETIC = {
    "add", "sub", "mul", "div", "pow", "floordiv", "neg", "pos", "sqrt", "rsqrt", "py:float", "py:int", "int",
    "float", "py:max", "py:min", "py:abs", "py:len", "log", "log2", "exp", "math.sqrt", "isqrt", "float32",
    "float64", "py:or", "py:and", "power",
}  # fmt: skip
_NUMBER_WORD = re.compile(
    r"(\w*?(scale|scaling|temper|temperature|sqrt|dims?|heads?|sizes?|width|channels|factor|depth)"
    r"|temp|norm_fact|alpha|beta|tau|d_?k|d_?q|d_?model|d_?head|embed|hidden|n_state|ch|idx)\d*"
)
"""A name one of whose words says that it is a number: `head_dim` and `qkdim`, and not `patch_weights`."""
_SETTINGS = re.compile(r"\w*(config|cfg|conf|args|opts?|options|hparams|hps?|params|settings|spec|self)")
"""Arguments whose attributes are numbers, where their names say so."""
_HOLDS_A_NUMBER = (
    "full",
    "tensor",
    "as_tensor",
    "FloatTensor",
    "Tensor",
    "to",
    "type_as",
    "type",
    "float",
    "cuda",
)
NUMBER, LEARNED, TENSOR = "number", "learned", "tensor"


def classify(value: Value, module: Module) -> str:
    """ "number", "learned" (a parameter with no axis over the keys) or "tensor" (anything else)."""
    return _classified(value, module, {}, 0)


def _classified(value: Value, module: Module, known: dict[Value, str], depth: int) -> str:
    if depth > 20:
        return TENSOR
    if value not in known:
        known[value] = _kind_of_scale(value, module, known, depth)
    return known[value]


def _kind_of_scale(value: Value, module: Module, known: dict[Value, str], depth: int) -> str:
    step()
    if number(value) is not None or (value.op == "item" and value.args[0].op in ("attr:shape", "size")):
        return NUMBER
    if (value.op == "size" and len(value.args) == 2) or value.op in ("attr:ndim", "dim"):
        return NUMBER
    if value.op == "index" and value.args[0].op in ("attr:shape", "size"):
        return NUMBER
    if isinstance(value.node, ast.Call) and module.qualified(value.node.func).startswith("math."):
        return NUMBER  # whatever it is given
    if value.op in ("py:len", "py:int", "py:float") or (
        value.op.startswith("attr:") and value.op != "attr:data"
    ):
        named = _named_like_a_number(value.op[5:])
        return NUMBER if value.op.startswith("py:") or (named and _is_setting(value)) else TENSOR
    if value.op == "item" and value.detail == "method" and len(value.args) == 1:
        return NUMBER
    if value.op in ("selfattr", "param", "global"):
        return _named(value, module)
    if (value.op in ("view", "reshape") and _ends_in_ones(value)) or (
        value.op == "index" and _ends_in_none(value)
    ):
        return LEARNED
    if value.op in _HOLDS_A_NUMBER and value.args:
        return _constant_tensor(value, module, known, depth)
    inner = [_classified(each, module, known, depth + 1) for each in value.inputs() if each.op != "missing"]
    if value.op in _ARITHMETIC or value.op == "phi":
        if all(each == NUMBER for each in inner):
            return NUMBER
        return LEARNED if TENSOR not in inner else TENSOR
    if value.op in ("clamp", "clip", "exp", "softplus", "sigmoid", "abs") and inner:
        return LEARNED if TENSOR not in inner else TENSOR
    return TENSOR


def _ends_in_ones(value: Value) -> bool:
    """`scale.view(1, -1, 1, 1)`: one value a head."""
    sizes = value.args[1].args if len(value.args) == 2 and value.args[1].op == "tuple" else value.args[1:]
    return len(sizes) >= 2 and number(sizes[-1]) == 1 and number(sizes[-2]) == 1


def _ends_in_none(value: Value) -> bool:
    """`scale[:, None, None]`: one value a head."""
    parts = value.args[1].args if value.args[1].op == "tuple" else ()
    return len(parts) >= 3 and all(each.op == "const" and each.detail is None for each in parts[-2:])


def _constant_tensor(value: Value, module: Module, known: dict[Value, str], depth: int) -> str:
    """`torch.full([], d ** 0.5, ...)` and `torch.tensor(0.01)`: a number in a tensor."""
    if value.op == "full":
        shape, fill = value.args[0], value.args[1] if len(value.args) > 1 else value.named.get("fill_value")
        if shape.op == "tuple" and not shape.args and fill is not None:
            return LEARNED if _classified(fill, module, known, depth + 1) == NUMBER else TENSOR
        return TENSOR
    inner = _classified(value.args[0], module, known, depth + 1)
    return LEARNED if inner in (NUMBER, LEARNED) else TENSOR


def _named_like_a_number(name: str) -> bool:
    """Whether a word of a name, and the words that follow it, say so."""
    words = name.lower().strip("_").split("_")
    spans = (
        "_".join(words[start:end])
        for end in range(len(words) + 1)
        for start in (end - 1, end - 2)
        if start >= 0
    )
    return any(_NUMBER_WORD.fullmatch(each) for each in spans)


def _is_setting(value: Value) -> bool:
    """`config.scale`, `self.config.scale`: an attribute of what holds numbers."""
    base = value.args[0]
    return base.op == "selfattr" or (
        base.op == "param" and bool(_SETTINGS.fullmatch(str(base.detail).lower()))
    )


def _named(value: Value, module: Module) -> str:
    if value.op == "param":
        annotation = getattr(value.node, "annotation", None)
        if isinstance(annotation, ast.Name) and annotation.id in ("float", "int"):
            return NUMBER
        return LEARNED if _named_like_a_number(str(value.detail)) else TENSOR
    if value.op == "global":
        constant = module.constants.get(str(value.detail))
        if isinstance(constant, ast.Constant) and isinstance(constant.value, (int, float)):
            return NUMBER
        return NUMBER if str(value.detail) in ("math.pi", "math.e", "numpy.pi") else TENSOR
    attribute = value.detail
    assert isinstance(attribute, Attribute)
    kind = kind_of(attribute, module)
    if kind.name == "number":
        return NUMBER
    if kind.name == "parameter":
        return LEARNED if _one_a_head(kind.expression, kind.home or module) else TENSOR
    if is_constant(value, module):
        return LEARNED
    expressions = attribute.owner.assignments(attribute.name) if attribute.owner else []
    module = attribute.home(module)
    if expressions and all(_is_arithmetic(each, module) for each in expressions):
        return NUMBER
    return (
        NUMBER
        if expressions and _named_like_a_number(attribute.name) and not _is_tensor(expressions, module)
        else (LEARNED if not expressions and _named_like_a_number(attribute.name) else TENSOR)
    )


def is_constant(value: Value, module: Module) -> bool:
    """Whether something is a stored number in a tensor that is not learned.

    Such as `torch.sqrt(torch.FloatTensor([d]))`.
    """
    attribute = value.detail
    if not isinstance(attribute, Attribute) or kind_of(attribute, module).name == "parameter":
        return False
    made = attribute.owner.assignments(attribute.name) if attribute.owner else []
    home = attribute.home(module)
    return bool(made) and _is_tensor(made, home) and all(_is_one_number(each, home) for each in made)


def _is_one_number(node: ast.expr, module: Module) -> bool:
    """Whether an expression makes a tensor of one number: `torch.sqrt(torch.tensor(d)).to(device)`."""
    match node:
        case ast.Call(func=ast.Attribute(attr="tensor" | "as_tensor"), args=[number, *_]) if not isinstance(
            number, ast.List | ast.Tuple
        ):
            return _is_arithmetic(number, module)
        case ast.Call(
            func=ast.Attribute(attr="tensor" | "as_tensor" | "Tensor" | "FloatTensor") as func,
            args=[ast.List(elts=[number]) | ast.Tuple(elts=[number]), *_],
        ):
            return module.qualified(func).startswith("torch.") and _is_arithmetic(number, module)
        case ast.Call(func=ast.Attribute(attr="sqrt" | "rsqrt" | "exp" | "log") as func, args=[inner]):
            return module.qualified(func).startswith("torch.") and _is_one_number(inner, module)
        case (
            ast.Call(func=ast.Attribute(value=inner, attr="to" | "type" | "cuda"))
            | ast.Call(
                func=ast.Attribute(value=inner, attr="sqrt" | "rsqrt" | "float" | "half" | "double" | "cpu"),
                args=[],
            )
        ):
            return _is_one_number(inner, module)
        case ast.BinOp(left=inner, right=ast.Constant()) | ast.BinOp(left=ast.Constant(), right=inner):
            return _is_one_number(inner, module)
    return False


def _is_tensor(expressions: list[ast.expr], module: Module) -> bool:
    return any(
        isinstance(each, ast.Call) and module.qualified(each.func).startswith("torch")
        for expression in expressions
        for each in walk(expression)
    )


def _is_arithmetic(node: ast.expr, module: Module) -> bool:
    """Whether an expression of `__init__` makes a Python number out of names and numbers."""
    match node:
        case ast.Constant(value=value):
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case ast.BinOp(left=left, right=right):
            return _is_arithmetic(left, module) and _is_arithmetic(right, module)
        case ast.UnaryOp(operand=operand):
            return _is_arithmetic(operand, module)
        case ast.BoolOp(values=values):
            return all(_is_arithmetic(each, module) for each in values)
        case ast.IfExp(body=body, orelse=orelse):
            return _is_arithmetic(body, module) and _is_arithmetic(orelse, module)
        case ast.Call(func=func):
            full = module.qualified(func)
            plain = isinstance(func, ast.Name) and func.id in ("float", "int", "max", "min", "len", "round")
            return plain or full.startswith(("math.", "numpy."))
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _named_like_a_number(name)
    return False


def _one_a_head(expression: ast.expr | None, module: Module) -> bool:
    """`nn.Parameter(torch.ones(heads, 1, 1))` and scalars: nothing along queries, keys or channels."""
    if not isinstance(expression, ast.Call) or not expression.args:
        return False
    if _is_one_number(expression.args[0], module):
        return True
    sizes = made_sizes(expression.args[0])
    return sizes is not None and (
        (len(sizes) <= 1 and (not sizes or sizes == ["1"])) or sizes[-2:] == ["1", "1"]
    )
