"""What each operation of an attention needs from elsewhere, cut out as inputs of a test."""

import ast

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.emit.words import Words, atom
from flashmore.upgrade.fragment.followed import Followed
from flashmore.upgrade.fragment.inputs import Inputs
from flashmore.upgrade.patterns.masks import FINITE, INFINITE, is_lowest
from flashmore.upgrade.patterns.terms import Term
from flashmore.upgrade.patterns.zeros import ROWS
from flashmore.upgrade.plan import Attention
from flashmore.upgrade.source.graph import Value, number
from flashmore.upgrade.source.nodes import Blocks, operand
from flashmore.upgrade.source.sizes import pattern_axes
from flashmore.upgrade.source.written import WrittenSoftmax
from flashmore.upgrade.text import Text


class Cuts:
    """The inputs of the extracted lines, and the texts that stand for what is cut out.

    Args:
        found: the attention.
        text: its source.
        blocks: where statements stand.
    """

    def __init__(self, found: Attention, text: Text, blocks: Blocks) -> None:
        self.found = found
        self.text = text
        self.blocks = blocks
        self.flow = found.flow
        self.inputs = Inputs(found, text)
        self.names = self.inputs.names
        self.only_old: dict[ast.AST, str] = {}
        self.helpers = Followed(self.inputs.taken)

    def cut(self, term: Term) -> None:
        """Takes note of what one operation needs from elsewhere."""
        if term.kind == "scale":
            if not term.value.inner or number(term.other) is None:
                self.inputs.scale(term)
        elif term.kind == "add":
            self._cut_add(term)
        elif term.kind == "product":
            self.inputs.of_baddbmm(term)
        elif term.kind == "fill":
            self._cut_fill(term)
        elif term.kind == "dropout":
            self.inputs.dropout(term)
        elif term.kind == "zeroed":
            self._cut_zeros(term)
        elif term.kind == "softmax":
            self._cut_softmax(term)
        elif term.value.op == "identity":
            self._cut_identity(term)
        elif term.kind == "reshape":
            self.inputs.view(term)
        elif term.kind == "cast":
            self._cut_cast(term)
        elif term.kind == "move" and term.value.op == "rearrange":
            self._cut_rearrange(term)

    def _cut_add(self, term: Term) -> None:
        assert term.other is not None
        if term.other.op == "element":
            statement = term.value.conditions[-1].statement if term.value.conditions else None
            if not isinstance(statement, ast.For):
                raise Refuse("a loop that cannot be cut out")
            one, two = (self.inputs.added(term, None, f"bias{index}") for index in (1, 2))
            self.names[statement.iter] = f"({one}, {two})"
            return
        if term.value.inner:
            self._helper(term)
            return
        node = operand(self.flow, term.value.node, term.other)
        if node is None:
            raise Refuse("a bias that cannot be cut out")
        made = self.inputs.added(term, node, "bias")
        self.names[node] = f"(-{made})" if term.detail == ("-",) else made

    def _helper(self, term: Term) -> None:
        """What a helper adds and hides: its call becomes a sum, and a fill."""
        node = term.value.node
        assert node is not None
        if node in self.names:
            return
        if self._copied(node):
            return
        tree = next(each for each in (self.found.scores, self.found.weights) if term in set(each.walk()))
        own = [each for each in tree.walk() if each.value.inner and each.value.node is node]
        below = {inner for each in own for inner in each.inner} - set(own)
        base = operand(self.flow, node, next(iter(below)).value) if len(below) == 1 else None
        kinds = [each.kind for each in own if each.kind not in ("phi", "same", "cast")]
        if base is None or not (set(kinds) <= {"add", "reshape"} or set(kinds) <= {"add", "fill"}):
            raise Refuse("a helper that cannot be cut out")
        made = self.text.of(base)
        if "reshape" in kinds:  # what it adds between its reshapes, as one bias of the scores' own shape
            whole = Term("add", term.value, (next(iter(below)),), term.other)
            own, made = [], f"({made} + {self.inputs.added(whole, None, 'bias')})"
        for each in reversed(own):
            if each.kind == "add":
                made = f"({made} + {self.inputs.added(each, None, 'bias')})"
            elif each.kind == "fill" and each.detail[0] == INFINITE:
                made = f'{atom(made)}.masked_fill({self.inputs.hidden(each)}, float("-inf"))'
            elif each.kind == "fill":
                raise Refuse("a helper that cannot be cut out")
        self.names[node] = made

    def _copied(self, call: ast.AST) -> bool:
        """Whether the code of a helper goes into the test; else what it computes is written there.

        Raises:
            Refuse: neither is possible, for it is only known what the helper of another file computes.
        """
        closure = next((each for node, each in self.flow.inlined if node is call), None)
        if closure is None or not isinstance(call, ast.Call):
            return False
        if call.func in self.names:
            return True
        terms = [each for tree in (self.found.scores, self.found.weights) for each in tree.walk()]
        inside = [each for each in terms if each.value.inner and each.value.node is call]
        try:
            if any(isinstance(each.value.detail, tuple) for each in inside if each.kind == "dropout"):
                raise Refuse("a helper that cannot be cut out")
            name = self.helpers.name(closure)
        except Refuse:
            if closure.module is not self.flow.own:
                raise
            return False
        self.names[call.func] = name
        for each in inside:
            node = operand(self.flow, call, each.other) if each.other is not None else None
            if node is not None and each.kind == "add":
                self.names[node] = self.inputs.added(each, node, "bias")
            elif node is not None and each.kind == "fill":
                self.inputs.mask(each)
        return True

    def _cut_fill(self, term: Term) -> None:
        if term.value.inner:
            self._helper(term)
            return
        self.inputs.mask(term)
        kind, fill = term.detail[:2]
        assert isinstance(fill, Value)
        node = operand(self.flow, term.value.node, fill)
        if "0/1" in term.detail:
            return
        if node is None and term.value.op == "setitem":
            statement = term.value.statement
            node = statement.value if isinstance(statement, ast.Assign) else None
        known = isinstance(node, ast.expr) and self.flow.seen.get(node) in self.flow.literals
        if node is not None and not known and not isinstance(node, (ast.Constant, ast.UnaryOp)):
            query = self.inputs.query
            finite = f"torch.finfo({query}.dtype).min" if is_lowest(fill) else "-1e9"
            self.names[node] = 'float("-inf")' if kind == INFINITE else finite
            if kind == FINITE and term.value.op == "where":
                self.names[node] = f"torch.tensor({finite}, dtype={query}.dtype)"
        if kind == INFINITE and node is not None and isinstance(node, ast.UnaryOp):
            self.names[node] = 'float("-inf")'

    def _cut_identity(self, term: Term) -> None:
        """`nn.Identity` gives back what it gets."""
        node = term.value.node
        base = operand(self.flow, node, term.value.args[0])
        if base is None or node is None or term.value.inner:
            raise Refuse("an identity that cannot be cut out")
        self.names[node] = atom(Words(self.text, self.names).of(base))

    def _cut_zeros(self, term: Term) -> None:
        """The mask of the weights is that of the scores, or what that says of whole rows."""
        fill = next(each for each in self.found.scores.walk() if each.kind == "fill")
        assert fill.other is not None
        assert term.other is not None
        first = operand(self.flow, fill.value.node, fill.other)
        again = operand(self.flow, term.value.node, term.other)
        if first is None or again is None:
            raise Refuse("a mask that cannot be cut out")
        known = (name for node, name in self.names.items() if self._key(node) == term.other.key)
        if (same := next(known, None)) is not None:
            self.names[again] = same
            return
        keeps = (bool(fill.detail[2]), bool(term.detail[1]))
        text = atom(Words(self.text, self.names).of(first))
        if term.detail[0] == ROWS:
            text = f"(~{text} if {keeps[0]} else {text}).all(dim=-1, keepdim=True)"
            keeps = (False, keeps[1])
        self.names[again] = text if keeps[0] == keeps[1] else f"~{text}"

    def _key(self, node: ast.AST) -> str | None:
        value = self.flow.seen.get(node) if isinstance(node, ast.expr) else None
        return value.key if value is not None else None

    def _cut_softmax(self, term: Term) -> None:
        node = term.value.node
        if isinstance(term.value.detail, WrittenSoftmax) and not term.value.inner:
            return
        if not isinstance(node, ast.Call):
            raise Refuse("a softmax that cannot be cut out")
        dim = term.value.get(1, "dim")
        dim_value = dim.detail if dim is not None and dim.op == "const" else None
        if dim is None:  # of two dimensions, see `softmax_letter`
            dim_value = -1
        elif dim.op == "neg":
            dim_value = -int(str(dim.args[0].detail))
        own = self.flow.seen.get(node)
        made_here = getattr(self.flow.seen.get(node.func), "op", "") != "partial"
        if own is term.value and not term.value.inner and term.value.detail in (None, "method") and made_here:
            return
        if self._copied(node):
            return
        scaled = self._scaled_in(term)
        if scaled is None or dim_value is None:
            raise Refuse("a softmax that cannot be cut out")
        made = f"F.softmax({scaled}, dim={dim_value})"
        for each in self.found.weights.walk():
            if each.kind == "dropout" and each.value.node is node and each.value.inner:
                self.inputs.dropout(each)
                made = self.inputs.dropped(each, made)
        self.only_old[node] = made

    def _scaled_in(self, term: Term) -> str | None:
        """What goes into the helper of a softmax, with the numbers that it multiplies there."""
        node, values = term.value.node, {each.value: each for each in self.found.scores.walk()}
        value, after = term.value.args[0], ""
        while (base := operand(self.flow, node, value)) is None:
            inner = values.get(value)
            if inner is None or not value.inner or value.node is not node or len(inner.inner) != 1:
                return None
            if inner.kind == "scale":
                after = f" {'/' if inner.detail[1] == 'div' else '*'} {number(inner.other)}{after}"
            elif inner.kind not in ("shift", "cast", "same"):
                return None
            value = inner.inner[0].value
        text = Words(self.text, self.names).of(base)
        return f"{atom(text)}{after}" if after else text

    def _cut_cast(self, term: Term) -> None:
        """`.to(x.dtype)`: of what is not here, q's dtype stands for it."""
        node = term.value.node
        if term.value.inner or not isinstance(node, ast.Call):
            return
        for argument in [*node.args, *(each.value for each in node.keywords)]:
            root = argument
            while isinstance(root, ast.Attribute):
                root = root.value
            value = self.flow.seen.get(root)
            elsewhere = value is not None and value.op != "global" and value not in self.found.chain
            if isinstance(root, ast.Name) and elsewhere and value is not None:
                dtype = root is argument and value.op == "attr:dtype"
                names = self.only_old if value in self.inputs.operands else self.names
                names[root] = f"{self.inputs.query}.dtype" if dtype else self.inputs.query

    def _cut_rearrange(self, term: Term) -> None:
        """einops' rearrange that only moves axes, as a permutation: a test need not have einops."""
        node, pattern = term.value.node, term.value.args[1].detail
        base = operand(self.flow, node, term.value.args[0])
        if base is None or node is None or term.value.inner or not isinstance(pattern, str):
            raise Refuse("a rearrangement that cannot be cut out")
        left, right = (pattern_axes(side) for side in pattern.split("->"))
        order = ", ".join(str(left.index(each)) for each in right)
        weights = any(each is term for each in self.found.weights.walk())
        names = self.only_old if weights else self.names
        names[node] = f"{atom(Words(self.text, self.names).of(base))}.permute({order})"
