"""The lines that compute a formula: all but the last fall away, and nothing else may need them."""

import ast
from functools import cached_property

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import step, walk
from flashmore.upgrade.checks.effects import effects
from flashmore.upgrade.checks.output import changed_in_place
from flashmore.upgrade.formulas.match import Match
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.functions import why_seen
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.nodes import Blocks
from flashmore.upgrade.source.scopes import MODULE, SEE_LOCALS
from flashmore.upgrade.text import Text

_CARRIED = ("phi", "loop", "carried")
_PERHAPS = ("carried", "global", "missing")
"""What a name means that an earlier round of a loop may have set."""


class Lines:
    """The statements of one formula.

    Args:
        flow: the function.
        match: the formula in it.
    """

    def __init__(self, flow: Flow, match: Match) -> None:
        assert match.root.statement is not None
        self.flow = flow
        self.match = match
        self.last = match.root.statement
        self.blocks = Blocks(flow.function)

    @cached_property
    def before(self) -> list[ast.stmt]:
        """The statements before the last one that compute nothing but a part of the formula, in order."""
        found = {
            value.statement
            for value in self.match.region
            if value.statement not in (None, self.last) and value.node is not None
        }
        return sorted((each for each in found if each is not None), key=lambda each: each.lineno)

    def check(self, *, keeps_result: bool) -> None:
        """Refuse lines that do more than compute the formula, or of which something else uses a part.

        Args:
            keeps_result: whether the gradient of the replacement is computed from its result.
        """
        self._check_statements()
        self._check_uses()
        self._check_seen()
        self._check_in_place(keeps_result)

    def _check_statements(self) -> None:
        """Whether what falls away are plain assignments in the block of the last statement."""
        if self.last not in self.blocks.places:
            raise Refuse("the lines are not statements of this function")
        block = self.blocks.places[self.last].block
        for each in self.before:
            if each not in self.blocks.places or self.blocks.places[each].block is not block:
                raise Refuse(f"a part of it is computed in another block, in line {each.lineno}")
            if not self._targets(each):
                raise Refuse(f"a part of it is computed in line {each.lineno}, which does more than that")
        if self.blocks.handler_of(self.last) is not None:
            raise Refuse("an exception in these lines is caught, and the call may raise another one")

    def _targets(self, statement: ast.stmt) -> set[str]:
        """The names that an assignment stores a part of the formula under; none where it does more."""
        match statement:
            case (
                ast.Assign(targets=[target], value=value)
                | ast.AnnAssign(target=target, value=ast.expr() as value)
            ) if self.flow.seen.get(value) in self.match.region:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                found = {each.id for each in names if isinstance(each, ast.Name)}
                return found if len(found) == len(names) else set()
        return set()

    def _check_uses(self) -> None:
        """Whether nothing else uses what falls away."""
        mine = {id(node) for each in self.before for node in walk(each)}
        mine |= {id(node) for node in walk(self.match.root.node)} if self.match.root.node else set()
        names = {name for each in self.before for name in self._targets(each)}
        inner = {*self.match.region} - {self.match.root}
        gone = set(inner)
        ahead = list(inner)
        while ahead:  # what a name may mean later, where branches meet
            step()
            more = [user for user in ahead.pop().users if user.op in _CARRIED and user not in gone]
            gone.update(more)
            ahead += more
        for node in walk(self.flow.function):
            if isinstance(node, ast.Name) and node.id in SEE_LOCALS and names:
                raise Refuse(f"`{node.id}` may look at the names that would fall away")
            if isinstance(node, (ast.Global, ast.Nonlocal)) and names & set(node.names):
                raise Refuse(f"line {node.lineno} shares a name that would fall away between scopes")
            if not isinstance(node, ast.Name) or id(node) in mine or node.id not in names:
                continue
            seen = self.flow.seen.get(node)
            known = seen is not None and seen not in gone and seen.op not in _PERHAPS
            if not isinstance(node.ctx, ast.Store) and not known:
                raise Refuse(f"`{node.id}` is used in line {node.lineno}, too")
        outside = {self.match.x, *(each for each in self.match.inputs.values() if isinstance(each, Value))}
        for value in inner - outside:
            for user in value.users:
                own = user in gone or user.op in ("const", "attr:shape", "attr:dtype", "attr:device")
                if not own and id(user.node) not in mine and value.op not in ("global", "const", "selfattr"):
                    line = getattr(user.node, "lineno", self.last.lineno)
                    raise Refuse(f"a part of it is used in line {line}, too")

    def _check_seen(self) -> None:
        """Whether no other code reads what a file's own lines bind."""
        lines = [*self.before, self.last]
        if self.flow.function.name == MODULE and (why := why_seen(self.flow.module, lines)) is not None:
            raise Refuse(why)

    def _check_in_place(self, keeps_result: bool) -> None:
        """Whether nothing changes in place what the gradient of the call is computed from."""
        kept, name = (self.match.root, "result") if keeps_result else (self.match.x, "input")
        line = changed_in_place(self.flow, kept)
        if line is not None:
            raise Refuse(f"its {name} is changed in place in line {line}, and its gradient needs it")

    def check_between(self, text: Text) -> None:
        """Refuse an effect between the first line that falls away and the call."""
        if not self.before or self.match.root.node is None:
            return
        start, end = text.span(self.before[0])[0], text.span(self.match.root.node)[0]
        for said, node in effects(self.flow.function, self.flow.module):
            if start <= text.span(node)[1] <= end:
                raise Refuse(f"`{said}` in line {getattr(node, 'lineno', 0)} runs between its lines")
