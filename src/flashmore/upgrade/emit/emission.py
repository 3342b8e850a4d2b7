"""The edits that turn one attention into a call: arguments of their own where they are simple, else a replay.

A replay leaves every statement about the scores as it is, and only lets it work on zeros in the scores'
place: `q[..., :0] @ k.transpose(-2, -1)[..., :0, :]` sums over no channels, so it has the scores' shape,
dtype and device and costs nothing to multiply. Scaling, adding and hiding are affine, so what they make of
zeros is exactly the bias that SDPA adds to the scaled product.
"""

import ast

from flashmore.upgrade.axes import JOINT, Refuse
from flashmore.upgrade.emit.arguments import Arguments
from flashmore.upgrade.emit.call import Pieces
from flashmore.upgrade.emit.hiding import steps
from flashmore.upgrade.emit.replay import Replay
from flashmore.upgrade.emit.writer import Emission
from flashmore.upgrade.source.nodes import operand
from flashmore.upgrade.source.scopes import defaults_of


class Emitter(Arguments, Replay):
    """Writes the edits of one attention, in the simpler way where that is possible."""

    def emit(self) -> Emission:
        """The edits.

        Raises:
            Refuse: there is no safe way to write it.
        """
        self._check_random()
        made = self._made()
        self._assume_dtypes()
        self._assume_of_masks()
        made.read = self.pieces.emitted
        made.asked = self._types_of_dropout()
        return made

    def _check_random(self) -> None:
        """Dropout must draw its numbers where it did: a context may give it a generator of its own."""
        around = set(self.blocks.ancestors(self.pieces.at))
        for term in self.found.weights.walk():
            if term.kind != "dropout" or term.value.op == "identity" or term.value.statement is None:
                continue
            if term.value.op == "call" and term.value.args[0].op == "param":
                name = str(term.value.args[0].detail)
                default = defaults_of(self.flow.function.args).get(name, ast.Constant(None))
                if not (isinstance(default, ast.Constant) and default.value is None):
                    raise Refuse(f"`{name}` is another function than dropout by default")
                self.result.assumptions.append(f"`{name}` is a torch.nn.Dropout")
            for each in self.blocks.ancestors(term.value.statement):
                if isinstance(each, (ast.With, ast.AsyncWith)) and each not in around:
                    raise Refuse(
                        "dropout is applied in a `with` block, but the product with the values is outside it"
                    )

    def _assume_dtypes(self) -> None:
        """A dtype of the values that only the caller knows is taken to be that of queries and keys."""
        around = set(self.blocks.ancestors(self.pieces.at))
        product = self.found.product.value.statement
        for each in self.blocks.ancestors(product) if product is not None else ():
            contexts = each.items if isinstance(each, ast.With) and each not in around else ()
            if any("autocast" in ast.unparse(item.context_expr) for item in contexts):
                self.result.assumptions.append(
                    f"queries and keys may be cast to 16 bits by an autocast around line {each.lineno}"
                )
        if not all(own for own, _ in self._dtypes_of_cast_weights()):
            before = " before these are cast" if self.upcast else ""
            self.result.assumptions.append(f"values have the dtype of queries and keys{before}")

    def _assume_of_masks(self) -> None:
        """What masks by a product take for granted, and weights that are set to zero after the softmax."""
        for term in self.found.scores.walk():
            if term.kind == "fill" and "0/1" in term.detail:
                node = operand(self.found.flow, term.value.node, term.other) if term.other else None
                shown = self.words.flat(node) if node is not None else "the mask"
                self.result.assumptions.append(
                    f"`{shown}` contains only zeros and ones, and needs no gradient"
                )
        if any(term.kind == "nans" for term in self.found.weights.walk()):
            self.result.assumptions.append("queries and keys contain no NaN, which would become a zero now")
        if any(term.kind == "zeroed" and term.value.op == "setitem" for term in self.found.weights.walk()):
            self.result.assumptions.append("the mask has as many dimensions as the weights")
        if self.found.zeroed or self.found.without_nans:
            self.result.assumptions.append(
                "torch is 2.5 or newer, which gives zeros for rows whose keys are all masked"
            )

    def _made(self) -> Emission:
        scores = self.found.scores
        while scores.kind == "reshape":  # the softmax runs over flattened rows; masks come before
            scores = scores.inner[0]
        simple = steps(scores)
        letters = tuple(part for each in self.found.layout for part in each.split(JOINT))
        if simple is not None and (not simple or letters == (*self.found.batch, "l", "s")):
            try:
                return self._simple(simple)
            except Refuse as refusal:
                if not simple:
                    raise
                first = refusal
                self.result = Emission()
                self.pieces = Pieces(self.found, self.words)
        else:
            first = None
        try:
            return self._replay()
        except Refuse:
            if first is not None:
                raise first from None
            raise
