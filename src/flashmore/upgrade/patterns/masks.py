"""What hides keys: which value is filled in, what the condition means, and which masks are surely causal."""

import ast

from flashmore.upgrade.budget import step
from flashmore.upgrade.source.attributes import Attribute, kind_of, stored_in
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.operations import CASTS, COMPARISONS, INTEGER_CASTS
from flashmore.upgrade.source.shapes import Shapes
from flashmore.upgrade.source.sizes import integers

INFINITE, FINITE, OTHER = "infinite", "finite", "other"
_THROUGH = (
    "to", "type_as", "type", "full_like", "tensor", "as_tensor", "py:float", "float",
    "expand_as", "expand", "clone", "masked_value", "float32", "new_tensor",
)  # fmt: skip


def fill_kind(value: Value, module: Module, depth: int = 0) -> str:
    """What a fill is: -inf, a large finite number (at most -1e4, or finfo.min), or something else."""
    step()
    if depth > 8:
        return OTHER
    found = number(value)
    if found is not None:
        return INFINITE if found == float("-inf") else FINITE if found <= -1e4 else OTHER
    if value.op == "py:float" and value.args and value.args[0].op == "const":
        text = str(value.args[0].detail).strip().lower()
        return INFINITE if text in ("-inf", "-infinity") else OTHER
    if value.op == "attr:min" and value.args[0].op == "finfo":
        return FINITE
    if value.op == "neg":
        return _negated(value.args[0], module, depth)
    if value.op in ("mul", "div") and len(value.args) == 2:
        return _scaled_fill(value, module, depth)
    if value.op in ("full", "full_like") and len(value.args) > 1:
        return fill_kind(value.args[1], module, depth + 1)
    if value.op == "new_full" and len(value.args) > 2:
        return fill_kind(value.args[2], module, depth + 1)
    if value.op in _THROUGH and value.args:
        return fill_kind(value.args[0], module, depth + 1)
    if value.op in ("global", "selfattr"):
        return _stored_fill(value, module)
    if value.op == "py:max" and value.args:
        kinds = {fill_kind(each, module, depth + 1) for each in value.args}
        return FINITE if FINITE in kinds else OTHER
    return OTHER


def is_lowest(value: Value) -> bool:
    """Whether a fill is the lowest number of a dtype."""
    while value.op in _THROUGH and value.args:
        value = value.args[0]
    if value.op == "full" and len(value.args) > 1:
        return is_lowest(value.args[1])
    return value.op == "attr:min" or (value.op == "neg" and value.args[0].op == "attr:max")


def _negated(value: Value, module: Module, depth: int) -> str:
    """The kind of the negative of a value."""
    found = number(value)
    if found is not None:
        return fill_kind(Value("const", detail=-found), module, depth + 1)
    if value.op == "py:float" and value.args and value.args[0].op == "const":
        text = str(value.args[0].detail).strip().lower()
        return INFINITE if text in ("inf", "infinity", "+inf") else OTHER
    if value.op == "attr:max" and value.args[0].op == "finfo":
        return FINITE
    if value.op == "global" and str(value.detail) in ("math.inf", "numpy.inf", "torch.inf", "numpy.Inf"):
        return INFINITE
    if value.op == "selfattr" and isinstance(value.detail, Attribute):
        kind = kind_of(value.detail, module)
        if kind.name == "number" and isinstance(kind.expression, ast.Constant):
            size = kind.expression.value
            made = Value("const", detail=-size if isinstance(size, (int, float)) else None)
            return fill_kind(made, module, depth + 1)
    return OTHER


def _scaled_fill(value: Value, module: Module, depth: int) -> str:
    """`-9e15 * torch.ones_like(e)`, `torch.finfo(t).min / 2`."""
    for one, two in (value.args, value.args[::-1]):
        if two.op in ("ones_like", "ones"):
            return fill_kind(one, module, depth + 1)
        factor = number(two)
        if factor is not None and 0 < factor <= 4 and value.args[0] is one:
            return fill_kind(one, module, depth + 1)
    return OTHER


def _stored_fill(value: Value, module: Module) -> str:
    if value.op == "global":
        if value.detail == "numpy.NINF":
            return INFINITE
        constant = module.constants.get(str(value.detail))
        return _literal_fill(constant) if constant is not None else OTHER
    attribute = value.detail
    if not isinstance(attribute, Attribute):
        return OTHER
    kinds = {_literal_fill(each) for each, _ in stored_in(attribute, module)}
    return kinds.pop() if len(kinds) == 1 else OTHER


def _literal_fill(node: ast.expr) -> str:
    """The kind of a constant expression, buffers such as `torch.tensor(-1e4)` included."""
    match node:
        case ast.Call(
            args=[inner, *_], func=ast.Attribute(attr="tensor" | "as_tensor") | ast.Name(id="float")
        ):
            return _literal_fill(inner)
        case ast.Constant(value=str(text)):
            return INFINITE if text.strip().lower() in ("-inf", "-infinity") else OTHER
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as size)):
            return INFINITE if size == float("inf") else FINITE if size >= 1e4 else OTHER
        case ast.UnaryOp(op=ast.USub(), operand=ast.Attribute(attr="inf")):
            return INFINITE
    return OTHER


TRIANGLES = ("tril", "triu", "tril_", "triu_")
_SHIFTED: dict[tuple[str, object], bool] = {("tril", 0): True, ("triu", 1): False}
"""Which triangles of ones hold the diagonal and what is below it, and which what is above."""


def is_lower_triangle(value: Value, module: Module, shapes: Shapes) -> bool | None:
    """Whether a condition is true exactly on and below the diagonal of a square.

    True: it is; False: it is its negation (true exactly above the diagonal); None: neither is certain.
    """
    step()
    op, args = value.op, value.args
    if op in COMPARISONS and len(args) == 2:
        bound = number(args[1]) if args[1].op != "const" or args[1].detail not in (True, False) else None
        bound = float(bool(args[1].detail)) if bound is None and args[1].op == "const" else bound
        inner = is_lower_triangle(args[0], module, shapes)
        if inner is None or bound is None:
            return None
        truth = {each: _compare(op, each, bound) for each in (0.0, 1.0)}
        if truth[0.0] == truth[1.0]:
            return None
        return inner if truth[1.0] else not inner
    if op in ("invert", "not", "logical_not") and args:
        inner = is_lower_triangle(args[0], module, shapes)
        return None if inner is None else not inner
    if op in CASTS | INTEGER_CASTS | {"detach"}:
        return is_lower_triangle(args[0], module, shapes) if args else None
    if op in ("view", "reshape", "unsqueeze", "expand", "index"):
        return _reshaped(value, module, shapes)
    if op in TRIANGLES:
        return _triangle(value, shapes)
    if op == "selfattr" and isinstance(value.detail, Attribute):
        kind = kind_of(value.detail, module)
        return (
            _stored_triangle(value.detail, module)
            if kind.name in ("unknown", "buffer", "parameter")
            else None
        )
    return None


def _compare(op: str, one: float, two: float) -> bool:
    return {"eq": one == two, "ne": one != two, "gt": one > two, "lt": one < two, "ge": one >= two,
            "le": one <= two}[op]  # fmt: skip


def _triangle(value: Value, shapes: Shapes) -> bool | None:
    base = value.args[0]
    diagonal = value.get(1, "diagonal")
    shift = 0 if diagonal is None else number(diagonal)
    like = shapes.of(base.args[0]) if base.op == "ones_like" and base.args else None
    if like is not None and len(like) >= 2 and like[-1] == like[-2]:
        return _SHIFTED.get((value.op.rstrip("_"), shift))
    shape = base.args[1:] if base.op == "new_ones" else base.args
    if base.op == "full" and len(base.args) > 1:
        ones = base.args[1].op == "const" and base.args[1].detail in (True, 1, 1.0)
        shape = base.args[:1]
    else:
        ones = base.op in ("ones", "new_ones")
    if len(shape) == 1 and shape[0].op == "tuple":
        shape = shape[0].args
    if not ones or len(shape) < 2 or shape[-1].key != shape[-2].key:
        return None
    return _SHIFTED.get((value.op.rstrip("_"), shift))


def _reshaped(value: Value, module: Module, shapes: Shapes) -> bool | None:
    """Leading dimensions of 1, and slices `[..., :T, :T]` with one T."""
    if value.op == "unsqueeze":
        dim, rank = number(value.get(1, "dim")), shapes.rank(value.args[0])
        in_front = dim == 0 or (
            rank is not None and isinstance(dim, int) and -rank - 1 <= dim % (rank + 1) <= rank - 2
        )
        return is_lower_triangle(value.args[0], module, shapes) if in_front else None
    if value.op == "index":
        index = value.args[1]
        if not _only_in_front(index, shapes.rank(value.args[0])):
            return None
        parts = list(index.args if index.op == "tuple" else (index,))
        slices = [each for each in parts if each.op == "slice"]
        full = [each for each in slices if all(p.op == "const" and p.detail is None for p in each.args)]
        cut = [each for each in slices if each not in full]
        if len(cut) == 2 and parts[-2:] == cut and all(_from_zero(each) for each in cut):
            same = shapes.size(cut[0].args[1]) == shapes.size(cut[1].args[1])
            return is_lower_triangle(value.args[0], module, shapes) if same else None
        if cut:
            return None
    if value.op in ("view", "reshape"):
        sizes = value.args[1].args if len(value.args) == 2 and value.args[1].op == "tuple" else value.args[1:]
        if len(sizes) < 2 or sizes[-1].key != sizes[-2].key or integers(sizes[:-2]) is None:
            return None
    return is_lower_triangle(value.args[0], module, shapes)


def _only_in_front(index: Value, rank: int | None) -> bool:
    """Whether an index puts new dimensions in front of the last two alone, and takes none of these away."""
    parts = list(index.args if index.op == "tuple" else (index,))
    before = 0
    for part in parts:
        if part.op == "const" and part.detail is None:
            if before > (0 if rank is None else rank - 2):
                return False
        elif part.op == "const" and part.detail is Ellipsis:
            return part is parts[-1] or all(each.op == "slice" for each in parts[parts.index(part) + 1 :])
        elif part.op == "slice":
            before += 1
        else:  # a number or a tensor takes a dimension away, or picks rows
            before += 1
            left = len(parts) - parts.index(part) - 1
            if left < 2 and (rank is None or before > rank - 2):
                return False
    return True


def _from_zero(part: Value) -> bool:
    start, _, step = part.args
    return (
        (start.op == "const" and start.detail in (None, 0))
        and step.op == "const"
        and step.detail in (None, 1)
    )


def _stored_triangle(attribute: Attribute, module: Module) -> bool | None:
    """`register_buffer("tril", torch.tril(torch.ones(n, n)).view(1, 1, n, n))` and nothing else."""
    expressions = attribute.owner.assignments(attribute.name) if attribute.owner else []
    if len(expressions) != 1:
        return None
    return _triangle_expression(expressions[0], attribute.home(module))


def _triangle_expression(node: ast.expr, module: Module) -> bool | None:
    match node:
        case ast.Call(func=ast.Attribute(value=inner, attr="view" | "reshape"), args=args):
            sizes = [ast.unparse(each) for each in args]
            if len(sizes) >= 2 and sizes[-1] == sizes[-2] and set(sizes[:-2]) <= {"1"}:
                return _triangle_expression(inner, module)
        case (
            ast.Call(func=ast.Attribute(value=inner, attr="bool" | "byte" | "float" | "int"))
            | ast.Call(func=ast.Attribute(value=inner, attr="to"), args=[_])
            | ast.Call(func=ast.Attribute(value=inner, attr="unsqueeze"), args=[ast.Constant(value=0)])
            | ast.Subscript(value=inner, slice=ast.Constant(value=None))
        ):
            return _triangle_expression(inner, module)
        case (
            ast.UnaryOp(op=ast.Invert(), operand=inner)
            | ast.Compare(left=inner, ops=[ast.Eq()], comparators=[ast.Constant(value=0 | False)])
        ):
            found = _triangle_expression(inner, module)
            return None if found is None else not found
        case ast.Call(
            func=ast.Attribute(attr="tril" | "triu" | "tril_" | "triu_" as name) as func,
            args=[inner, *more],
            keywords=named,
        ):
            if module.qualified(func).startswith("torch.") and _square_ones(inner, module):
                return _by_shift(name, [*more, *(each.value for each in named)])
        case ast.Call(
            func=ast.Attribute(value=inner, attr="tril" | "triu" | "tril_" | "triu_" as name),
            args=more,
            keywords=named,
        ):
            if _square_ones(inner, module):
                return _by_shift(name, [*more, *(each.value for each in named)])
    return None


def _by_shift(name: str, shifts: list[ast.expr]) -> bool | None:
    shift = shifts[0].value if shifts and isinstance(shifts[0], ast.Constant) else None if shifts else 0
    return _SHIFTED.get((name.rstrip("_"), shift))


def _square_ones(node: ast.expr, module: Module) -> bool:
    if not isinstance(node, ast.Call) or module.qualified(node.func) != "torch.ones":
        return False
    sizes = node.args
    if len(sizes) == 1 and isinstance(sizes[0], (ast.Tuple, ast.List)):
        sizes = sizes[0].elts
    texts = [ast.unparse(each) for each in sizes]
    return len(texts) >= 2 and texts[-1] == texts[-2] and set(texts[:-2]) <= {"1"}
