"""From a softmax back to the product of queries and keys: only affine steps and casts."""

import re

from flashmore.upgrade.budget import step
from flashmore.upgrade.patterns.masks import FINITE, INFINITE, OTHER, fill_kind
from flashmore.upgrade.patterns.products import product_of
from flashmore.upgrade.patterns.scales import TENSOR, classify
from flashmore.upgrade.patterns.terms import Term, Unfit, joined
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.operations import CASTS, METADATA, MOVES, RESHAPES
from flashmore.upgrade.source.shapes import Shapes

_NAMES = {
    "tanh": "the scores are soft-capped by tanh before the softmax",
    "clamp": "the scores are clamped before the softmax",
    "cat": "one softmax runs over several sets of scores joined together",
    "concat": "one softmax runs over several sets of scores joined together",
    "dropout": "dropout is applied to the scores, before the softmax",
    "index": "only part of the scores enters the softmax",
    "gather": "only some of the scores enter the softmax",
    "topk": "only the largest scores enter the softmax",
    "leaky_relu": "the scores go through a non-linearity",
    "relu": "the scores go through a non-linearity",
    "layer:LeakyReLU": "the scores go through a non-linearity (additive attention)",
    "layer:Linear": "heads are mixed before the softmax (talking heads), or the scores are a layer's output",
    "layer:Conv2d": "heads are mixed before the softmax by a convolution",
    "zeros": "the scores are zeros: there are no queries and keys",
}

_SCORES = re.compile(r"score|logit|attn|att\b|attention|energy|sim\b|dots|affinity", re.IGNORECASE)


def _without_product(value: Value) -> Unfit:
    """What goes into a softmax that no product of this function does."""
    line = getattr(value.node, "lineno", None)
    where = f" (line {line})" if line else ""
    if value.op == "param" and value.detail != "self":
        what, name = f"the argument `{value.detail}`{where}", str(value.detail)
    elif value.op == "selfattr":
        what, name = f"`{value.detail}`", str(value.detail)
    elif value.op == "call":
        what, name = f"the result of `{value.name()}`{where}", value.name()
    else:
        return Unfit("no product of queries and keys goes into the softmax", value)
    advice = "write the product of queries and keys into this function" if _SCORES.search(name) else ""
    return Unfit(f"{what} goes into the softmax, and no product of queries and keys", value, advice=advice)


class Scores:
    """Walks from a softmax's input to the product."""

    def __init__(self, module: Module, shapes: Shapes) -> None:
        self.module = module
        self.shapes = shapes
        self.seen: dict[Value, Term | Unfit] = {}

    def walk(self, value: Value) -> Term | Unfit:
        """The chain that makes a value out of a product."""
        step()
        if value not in self.seen:
            self.seen[value] = Unfit("the scores are computed from themselves", value)
            self.seen[value] = self._walk(value)
        return self.seen[value]

    def _walk(self, value: Value) -> Term | Unfit:
        op = value.op
        product = product_of(value, self.shapes)
        if product is not None:
            return self._product(value)
        if op in ("einsum", "einops.einsum", "tensordot", "contract"):
            return Unfit(
                "the equation of the product is not one text with `->` in the call", value, product=True
            )
        if op in ("mul", "multiply", "div", "true_divide", "divide") and len(value.args) == 2:
            return self._scale(value)
        if op in ("add", "sub", "subtract") and len(value.args) == 2:
            return self._add(value)
        if op in ("masked_fill", "where", "setitem", "masked_fill_"):
            return self._fill(value)
        if op in ("phi", "loop", "carried"):
            return self._joint(value)
        if op in CASTS and value.args:
            return self._through("cast", value)
        if (op in MOVES or op == "rearrange") and value.args:
            return self._through("move", value)
        if op in RESHAPES and value.args:
            return self._through("reshape", value)
        if op == "identity" or self._is_floor(value):
            return self._through("same", value)
        factors = value.args[0].args if op == "sum" and value.args[0].op == "mul" else ()
        if factors and all(each.op in ("unsqueeze", "index") for each in factors):
            reason = "queries and keys are multiplied one by one and summed, in float32 even under autocast"
            advice = "write a matrix product, q @ k.transpose(-2, -1)"
            return Unfit(reason, value, product=True, advice=advice)
        return self._unknown(value)

    def _is_floor(self, value: Value) -> bool:
        """`torch.max(scores, torch.tensor(torch.finfo(t).min))`: it only keeps sums of masks finite."""
        if value.op not in ("max", "maximum", "clamp", "clamp_min") or len(value.args) != 2 or value.inner:
            return False
        return fill_kind(value.args[1], self.module) != OTHER and isinstance(self.walk(value.args[0]), Term)

    def _through(self, kind: str, value: Value) -> Term | Unfit:
        inner = self.walk(value.args[0])
        return inner if isinstance(inner, Unfit) else Term(kind, value, (inner,))

    def _product(self, value: Value) -> Term | Unfit:
        product = product_of(value, self.shapes)
        assert product is not None
        if len(product.contracted) != 1:
            advice = "flatten the axes of channels into one before the product" if product.contracted else ""
            return Unfit("the product sums over more than one axis, or over none", value, advice=advice)
        sides = [product.only(0), product.only(1)]
        if not all(sides):
            return Unfit(
                "the product is not one of queries and keys (heads are mixed, or an axis is shared)", value
            )
        for side, operand in enumerate(product.operands):
            other = product.letters[1 - side]
            shared = set(other) & set(product.out) & set(product.letters[side])
            mixes = len(product.only(side)) > 1 and len(other) == 2 and not shared
            if mixes and isinstance(self.walk(operand), Term):
                return Unfit("heads are mixed before the softmax (talking heads)", value, product=True)
            if operand.op == "softmax":
                return Unfit("an operand of the product comes from another softmax", value)
        return Term("product", value, product=product)

    def _scale(self, value: Value) -> Term | Unfit:
        pairs = [(value.args[0], value.args[1])]
        if value.op in ("mul", "multiply"):
            pairs.append((value.args[1], value.args[0]))
        found: Unfit | None = None
        for base, scale in pairs:
            inner = self.walk(base)
            if isinstance(inner, Unfit):
                found = found if found is not None and (found.product or found.value.of_product) else inner
                continue
            kind = classify(scale, self.module)
            if kind == TENSOR:
                return Unfit("the scores are multiplied by a tensor", value, product=True)
            return Term("scale", value, (inner,), scale, (kind, "div" if "div" in value.op else "mul"))
        assert found is not None
        return found

    def _add(self, value: Value) -> Term | Unfit:
        if set(value.named) - {"alpha"} or value.named:
            return Unfit("the scores are added with a factor", value)
        one, two = (self.walk(each) for each in value.args)
        if (blended := self._blended(value)) is not None:
            return blended
        if isinstance(one, Unfit) and isinstance(two, Unfit):
            return one if one.product else two
        if isinstance(one, Unfit) and value.op != "add":
            return Unfit("the scores are subtracted from something", value, product=True)
        first = isinstance(one, Term)
        inner, other = (one, value.args[1]) if first else (two, value.args[0])
        assert isinstance(inner, Term)
        if isinstance(one, Term) and isinstance(two, Term) and not self._good(one) and self._good(two):
            inner, other = two, value.args[0]
        bottom = {product.value for product in inner.products()}
        if depends(other, bottom):
            if value.op != "add" and shift_of(other) is not None:
                return Term("shift", value, (inner,), other)
            return Unfit("what is added to the scores depends on the scores", value, product=True)
        return Term("add", value, (inner,), other, ("-" if value.op != "add" else "+",))

    def _blended(self, value: Value) -> Term | None:
        """`scores * keep - 1e10 * (1 - keep)`, which is a fill."""
        product, rest = value.args
        if product.op != "mul" or rest.op != "mul" or product.inplace:
            return None
        for base, mask in (product.args, product.args[::-1]):
            inner = self.walk(base)
            for size, left in (rest.args, rest.args[::-1]):
                found = number(size)
                opposite = left.op == "sub" and number(left.args[0]) == 1 and left.args[1] is mask
                if isinstance(inner, Term) and found is not None and opposite:
                    fill = -abs(found) if (value.op != "add") == (found > 0) else 0.0
                    if fill <= -1e4:
                        whole = Term("same", product, (inner,))
                        made = Value("const", detail=fill)
                        return Term("fill", value, (whole,), mask, (FINITE, made, True, "0/1"))
        return None

    def _good(self, term: Term) -> bool:
        """Whether both operands of the product vary over the batch, as queries and keys do."""
        return all(
            product.operands[0].op != "selfattr" and product.operands[1].op != "selfattr"
            for product in term.products()
        )

    def _fill(self, value: Value) -> Term | Unfit:
        if value.op == "setitem":
            base, mask, fill = value.args
            keeps = False
        elif value.op == "where":
            if len(value.args) != 3:
                return Unfit("where() with one argument", value)
            return self._where(value)
        else:
            mask_value = value.get(1, "mask")
            fill_value = value.get(2, "value")
            if mask_value is None or fill_value is None:
                return Unfit("masked_fill() is called without a mask and a value", value)
            base, mask, fill, keeps = value.args[0], mask_value, fill_value, False
        inner = self.walk(base)
        if isinstance(inner, Unfit):
            return inner
        return self._filled(value, inner, mask, fill, keeps)

    def _where(self, value: Value) -> Term | Unfit:
        one, mask, two = value.args
        if value.detail != "method":
            mask, one = one, mask
        first, second = self.walk(one), self.walk(two)
        if isinstance(first, Term) and isinstance(second, Unfit):
            return self._filled(value, first, mask, two, True)
        if isinstance(second, Term) and isinstance(first, Unfit):
            return self._filled(value, second, mask, one, False)
        return (
            first if isinstance(first, Unfit) else Unfit("where() chooses between two sets of scores", value)
        )

    def _filled(self, value: Value, inner: Term, mask: Value, fill: Value, keeps: bool) -> Term | Unfit:
        kind = fill_kind(fill, self.module)
        if kind == OTHER:
            return Unfit(
                "scores are replaced by a value that is neither -inf nor very negative", value, product=True
            )
        if depends(mask, {product.value for product in inner.products()}):
            return Unfit("which keys are masked depends on the scores", value, product=True)
        if value.op == "setitem" and kind != INFINITE:
            return Unfit("scores are assigned by index, with a finite value", value, product=True)
        return Term("fill", value, (inner,), mask, (kind, fill, keeps))

    def _joint(self, value: Value) -> Term | Unfit:
        if value.op == "carried":
            inner = self.walk(value.args[0])
            return inner if isinstance(inner, Unfit) else Term("carried", value, (inner,))
        one, two = (self.walk(each) for each in value.args)
        if value.op == "phi":
            return joined(value, one, two)
        if isinstance(one, Unfit):
            return one
        if isinstance(two, Unfit):
            return two
        return Term("loop", value, (one, two))

    def _unknown(self, value: Value) -> Unfit:
        beneath = any(isinstance(self.walk(each), Term) for each in value.inputs() if each.op != "const")
        if value.op == "tuple":
            beneath = False
        elif value.op in ("cat", "concat", "stack") and value.args and value.args[0].op == "tuple":
            beneath = any(isinstance(self.walk(each), Term) for each in value.args[0].args)
        reason = _NAMES.get(value.op)
        if reason is not None or beneath:
            said = f"`{value.name()}` is applied between the product and the softmax"
            return Unfit(reason or said, value, product=beneath)
        return _without_product(value)


def depends(value: Value, bottom: set[Value]) -> bool:
    """Whether a value is computed from one of others: their shape, dtype and device do not count."""
    seen: set[Value] = set()
    stack = [value]
    while stack:
        step()
        each = stack.pop()
        if each in bottom:
            return True
        if each in seen or each.op in METADATA:
            continue
        seen.add(each)
        args = each.args[:1] if each.op in ("type_as", "to", "view_as", "expand_as") else tuple(each.inputs())
        stack.extend(args)
    return False


def shift_of(value: Value) -> Value | None:
    """The maximum in `x.max(-1, keepdim=True).values`, `x.amax(-1).unsqueeze(-1)`, `x.max()`."""
    while value.op in ("detach", "item", "index", "attr:values", "unsqueeze"):
        value = value.args[0]
    return value if value.op in ("max", "amax", "logsumexp") else None
