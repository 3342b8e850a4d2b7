"""What every rewriting writes: the call in the second product's place."""

import ast
import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.checks.output import is_changed_in_place, reshaped_views
from flashmore.upgrade.emit.call import SDPA, Pieces, Scale, number
from flashmore.upgrade.emit.half import Half
from flashmore.upgrade.emit.hiding import from_caller
from flashmore.upgrade.emit.words import Words, atom, call, factor
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.site import Edit
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.graph import number as number_of
from flashmore.upgrade.source.nodes import Blocks, operand
from flashmore.upgrade.source.operations import CHANGES_DTYPE, VIEWS
from flashmore.upgrade.text import comments

_COPIED = "# a copy, because it is changed in place later and the gradients need it as it was"
_FIXED = ("float(", "half(", "bfloat16(", "double(")
"""Casts to a dtype that no tensor gives."""
_SCALED = ("mul", "div", "add", "sub")
"""What a tensor that is cast to float32 may take part in, as in rotary embeddings, and stay in it."""


@dataclass
class Emission:
    """Edits of one function, and what they assume."""

    edits: list[Edit] = field(default_factory=list)
    removed: set[ast.stmt] = field(default_factory=set)
    setup: list[tuple[ast.stmt, list[str]]] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    rule: str = ""
    call: str = ""
    imported: str | None = None
    half: Half | None = None
    """The guard against float16, where a caller adds anything."""
    asked: list[tuple[ast.expr, str]] = field(default_factory=list)
    """Tests that a guard asks beside the conditions, each with what it reads."""
    read: list[ast.expr] = field(default_factory=list)
    """The user's expressions that the call reads, where it stands."""


class Writer:
    """Writes the edits of one attention.

    Args:
        found: the attention.
        words: the texts.
        blocks: where statements stand.
    """

    def __init__(self, found: Attention, words: Words, blocks: Blocks) -> None:
        self.found = found
        self.words = words
        self.text = words.text
        self.blocks = blocks
        self.pieces = Pieces(found, words)
        self.flow = found.flow
        self.result = Emission()
        self.donors: list[ast.Name] = []
        self.upcast = self._is_upcast()

    @property
    def taken(self) -> set[str]:
        """Names that mean something in the function already."""
        return self.pieces.taken

    def _types_of_dropout(self) -> list[tuple[ast.expr, str]]:
        """That a module of unknown class is a dropout, with the expression that gives it."""
        found = []
        for term in self.found.weights.walk():
            node, value = term.value.node, term.value
            if term.kind == "dropout" and value.op == "call" and value.args[0].op == "selfattr":
                if not isinstance(node, ast.Call) or value.inner:
                    raise Refuse("dropout is applied inside a helper", "move it into this function")
                kind = self.flow.module.spelling("torch.nn.Dropout", self.flow.function)
                kind = kind or f"{self._torch()}.nn.Dropout"
                found.append((node.func, f"type({self.words.flat(node.func)}) is {kind}"))
        return found

    def _is_upcast(self) -> bool:
        """Whether queries and keys are cast, and the weights then to the dtype of the values.

        The call takes all three in that dtype: the kernels compute scores and softmax of 16-bit tensors in
        float32.
        """
        found = set(self._dtypes_of_cast_weights())
        if any(own not in ("", of_q) for own, of_q in found):
            raise Refuse("the values are cast to a dtype of their own", "cast queries and keys as well")
        return any(own != of_q for own, of_q in found) or self._stays_wide()

    def _stays_wide(self) -> bool:
        """Whether scores or weights are cast to float32 and never back, so that the values must be in it."""
        if any(_dtype_of(each.value)[1] for each in (self.found.q, self.found.k, self.found.v)):
            return False
        for term in (*self.found.weights.walk(), *self.found.scores.walk()):
            if term.kind == "cast" and term.value.op in CHANGES_DTYPE:
                return _is_float32(term.value.op, term.value.args[1:], term.value.named)
            if term.kind == "softmax" and "dtype" in term.value.named:
                return _is_float32("to", (), term.value.named)
        return False

    def _dtypes_of_cast_weights(self) -> Iterator[tuple[str, str]]:
        """The casts of the values and of the queries, for each cast of the weights.

        Left out are those to the dtype of the queries, which is that of the values then.
        """
        (value, own), (query, of_q) = (_dtype_of(each.value) for each in (self.found.v, self.found.q))
        for term in self.found.weights.walk():
            if term.kind != "cast" or term.value.op not in CHANGES_DTYPE:
                continue
            given = (*term.value.args[1:], *term.value.named.values())
            whose = [_dtype_of(each.args[0] if each.op == "attr:dtype" else each) for each in given]
            of_values = any(each is value for each, _ in whose)
            if of_values or (of_q and _cast(term.value) != of_q and (query, of_q) not in whose):
                yield own, of_q
        if of_q != own and own.startswith(_FIXED) and self._casts():
            yield own, of_q

    def _in_dtype_of_values(self, text: str) -> str:
        """Queries or keys as the call takes them."""
        return f"{atom(text)}.to({self._named_operand()}.dtype)" if self.upcast else text

    def _query(self, scale: Scale) -> str:
        q = self.pieces.tensor(self.found.q, self.found.product.value, "ld")
        for how, text in scale.learned:
            q = f"{factor(q)} {'*' if how == 'mul' else '/'} {factor(text)}"
            self.result.assumptions.append(f"{text} is a number, or has at most one value per head")
        if scale.learned and not self.upcast and any(self._dtypes_of_cast_weights()):
            return self.like_queries(q)  # the learned number may be in float32
        return self._in_dtype_of_values(q)

    def clamped(self, text: str, value: Value, *, subtracted: bool = False) -> str:
        """A caller's mask, kept finite: under autocast SDPA would turn float32's lowest number into -inf."""
        return self.lowest(text, subtracted=subtracted) if from_caller(value) else self.like_queries(text)

    def lowest(self, text: str, *, subtracted: bool = False) -> str:
        """A bias in the queries' dtype, whose lowest number (its highest if subtracted) bfloat16 has too."""
        torch, query = self._torch(), self._named_operand()
        if not self.flow.module.is_builtin("max", self.flow.function):
            where = self.flow.module.names["max"]
            raise Refuse(f"`max` is redefined: see line {where}", "rename that one")
        lowest = f"max({torch}.finfo({query}.dtype).min, {torch}.finfo({torch}.bfloat16).min)"
        bound = f"max=-{lowest}" if subtracted else f"min={lowest}"
        made = f"{atom(text)}.to({query}.dtype).clamp({bound})"
        if not self.found.without_nans:
            return made
        hidden = f"{'' if subtracted else '-'}{torch}.inf"  # a row of them is NaN, which becomes zero
        return f"{made}.masked_fill({atom(text)} == {hidden}, {hidden})"

    def like_queries(self, text: str) -> str:
        """A bias in the queries' dtype, where the old lines take one of another dtype."""
        return f"{atom(text)}.to({self._named_operand()}.dtype)" if self._casts() else text

    def _casts(self) -> bool:
        """Whether a mask of another dtype fits the old lines: they cast, or add in place."""
        terms = (*self.found.scores.walk(), *self.found.weights.walk())
        return any(
            each.kind == "cast" or "dtype" in each.value.named or (each.kind == "add" and each.value.inplace)
            for each in terms
        )

    def adds_a_callers(self) -> None:
        """Take note that a caller adds something, which may hold float16's lowest number."""
        self.result.half = Half(self._torch(), self._named_operands())

    def _named_operands(self) -> list[tuple[ast.expr, str]]:
        """Those of q, k and v that are names and have the dtype of the attention, with their texts."""
        owners = (self.found.product.value, self.found.product.value, self.found.final)
        operands = [*zip((self.found.q, self.found.k, self.found.v), owners, strict=True)]
        nodes = [self.pieces.peeled(which, owner)[0] for which, owner in operands[-1 if self.upcast else 0 :]]
        return [
            (each, self.words.of(each))
            for each in nodes
            if isinstance(each, ast.Name) or each in self.words.names
        ]

    def _named_operand(self) -> str:
        """The text of the first of them that the call can read: their dtype is the attention's."""
        for node, text in self._named_operands():
            if self.pieces.stability.holds(node, self.pieces.at):
                return text
        if self.upcast:
            raise Refuse(
                "queries and keys must be cast to the dtype of the values, which have no name here",
                "assign the values to a name first",
            )
        raise Refuse(
            "the bias must be cast to the dtype of queries and keys, which have no names here",
            "assign queries and keys to names",
        )

    def _torch(self) -> str:
        """The name of torch, imported where the file has none for it."""
        module = self.flow.module
        if (name := module.spelling("torch", self.flow.function)) is None:
            name = "torch"
            self._imports_torch("import torch")
        return name

    def _imports_torch(self, line: str) -> None:
        """Import torch under its own name, which must mean nothing in this file yet."""
        if "torch" in self.flow.module.names:
            where = self.flow.module.names["torch"]
            raise Refuse(f"`torch` may be redefined: see line {where}", "import torch under another name")
        self._needs(line)

    def _needs(self, line: str) -> None:
        lines = {line, *(self.result.imported or line).split("\n")}
        self.result.imported = "\n".join(sorted(lines))

    def _is_guarded(self) -> bool:
        """Whether the old lines stay in another branch."""
        return bool(self.found.guards or self._types_of_dropout()) or any(
            term.kind == "add" and not term.value.inner and term.other is not None and from_caller(term.other)
            for term in self.found.scores.walk()
        )

    def _replace(self, node: ast.AST, text: str) -> None:
        start, end = self.text.span(node)
        self.result.edits.append(Edit(start, end, text))

    def _write_call(self, q: str, arguments: list[str], scale: Scale) -> None:
        function = self._function()
        k = self._in_dtype_of_values(self.pieces.tensor(self.found.k, self.found.product.value, "sd"))
        v = self.pieces.tensor(self.found.v, self.found.final, "se")
        dropout = self.pieces.dropout()
        if dropout is not None:
            arguments.append(f"dropout_p={dropout}")
        if not scale.default:
            arguments.append(f"scale={number(scale)}")
        node = self.found.final.node
        assert node is not None
        masked = any(each.startswith("attn_mask=") for each in arguments)
        leading = None if masked else self.pieces.leading()
        operands = [self.pieces.lifted(each) for each in (q, k, v)]
        if leading is not None:
            operands = [f"{atom(each)}.flatten(0, {len(self.found.batch) - 2})" for each in operands]
        arguments = [*operands, *arguments]
        width = len(self.text.indent(self.pieces.at)) + 16
        self.result.call = call(function, arguments, self.text.indent(self.pieces.at), width)
        self._hoist()
        apart = "" if leading is None else f".unflatten(0, {leading})"
        final = f"{self.pieces.lowered(f'{self.result.call}{apart}')}{self._after_call()}"
        factors = self.pieces.factors()
        for how, text in factors:
            by = ast.parse(text.strip(), mode="eval").body
            text = ast.unparse(by) if isinstance(by, ast.IfExp) else text  # without its parentheses
            final = f"{final} {'*' if how == 'mul' else '/'} {factor(text)}"
        if factors and getattr(self.pieces.at, "value", None) is not node:
            final = f"({final})"
        for term in self.found.weights.walk():
            if term.kind == "scale" and term.other is not None and number_of(term.other) is None:
                given = operand(self.flow, term.value.node, term.other)
                said = [f"`{self.text.of(given)}` is a number"] if given is not None else []
                self.result.assumptions += said
        start, end = self._without_parentheses(node)
        self.result.edits.append(Edit(start, end, final))
        inside = [] if self._is_guarded() else comments(self.text.of(node))
        if inside:
            self.result.setup.insert(0, (self.pieces.at, inside))

    def _after_call(self) -> str:
        """What makes the output one that may be changed in place, or viewed, as it is later."""
        ends = reshaped_views(self.found, self.text, self._is_guarded())
        if is_changed_in_place(self.found):
            self.result.setup.append((self.pieces.at, [_COPIED]))
            laid_out = f"memory_format={self._torch()}.contiguous_format" if ends != set() else ""
            return f".clone({laid_out})"
        self.result.edits += [Edit(end - 4, end, "reshape") for end in ends or ()]
        return "" if ends is not None else ".contiguous()"

    def _hoist(self) -> None:
        statement = self.found.product.value.statement
        assert statement is not None
        lines = [f"{name} = {self.words.flat(node)}" for name, node in self.pieces.hoisted]
        if lines:
            self.result.setup.append((statement, lines))

    def _function(self) -> str:
        module = self.flow.module
        if (found := module.spelling(SDPA, self.flow.function)) is not None:
            return found
        if "F" not in module.names:
            self._needs("import torch.nn.functional as F")
            return "F.scaled_dot_product_attention"
        self._imports_torch("import torch.nn.functional")
        return SDPA

    def _without_parentheses(self, node: ast.AST) -> tuple[int, int]:
        """The span of the second product, with the parentheses that a call does not need."""
        start, end = self.text.span(node)
        source = self.text.source
        before = source[:start].rstrip(" \t")
        if isinstance(node, ast.BinOp) and before.endswith("(") and source[end : end + 1] == ")":
            earlier = before[:-1].rstrip(" \t")
            word = re.search(r"\w*$", earlier)
            spaced = len(earlier) < len(before) - 1 and word is not None and keyword.iskeyword(word[0])
            if spaced or not (earlier[-1:].isalnum() or earlier[-1:] in ("_", ")", "]", '"', "'")):
                return len(before) - 1, end + 1
        return start, end


def _dtype_of(value: Value) -> tuple[Value, str]:
    """The tensor that a value is a view or a cast of, and its last cast to another dtype, by branches."""
    last = ""
    while value.args and value.op in (*VIEWS, "phi", *_SCALED):
        if value.op == "phi":
            (one, first), (two, second) = map(_dtype_of, value.args)
            return (one, last or " or ".join(dict.fromkeys((first, second)))) if one is two else (value, last)
        if not last and value.op in CHANGES_DTYPE:
            last = _cast(value)
        value = value.args[number_of(value.args[0]) is not None and len(value.args) > 1]
    return value, last


def _is_float32(op: str, given: Sequence[Value], named: Mapping[str, Value]) -> bool:
    """Whether a cast is one to float32."""
    dtypes = (*given, *named.values())
    return op == "float" or any(each.detail in ("torch.float32", "torch.float") for each in dtypes)


def _cast(value: Value) -> str:
    """A cast by its meaning."""
    return f"{value.op}({', '.join(each.key for each in (*value.args[1:], *value.named.values()))})"
