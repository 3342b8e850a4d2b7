"""The edits that turn one attention into a call: arguments of their own where they are simple, else a replay.

A replay leaves every statement about the scores as it is, and only lets it work on zeros in the scores'
place: `q[..., :0] @ k.transpose(-2, -1)[..., :0, :]` sums over no channels, so it has the scores' shape,
dtype and
device and costs nothing to multiply. Scaling, adding and hiding are affine, so what they make of zeros is
exactly
the bias that SDPA adds to the scaled product.
"""

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.emit.arguments import Arguments
from flashmore.upgrade.emit.call import Pieces
from flashmore.upgrade.emit.hiding import steps
from flashmore.upgrade.emit.replay import Replay
from flashmore.upgrade.emit.writer import Emission
from flashmore.upgrade.source.nodes import operand


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
        simple = steps(self.found.scores)
        if simple is not None and (not simple or self.found.layout == (*self.found.batch, "l", "s")):
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
