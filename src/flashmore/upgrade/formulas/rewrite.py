"""From a formula that was recognised to the place of a report: its edits, and the two functions of a test."""

import ast
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import step, walk
from flashmore.upgrade.checks.compiled import require_compilable
from flashmore.upgrade.checks.effects import effects
from flashmore.upgrade.checks.output import changed_in_place
from flashmore.upgrade.checks.reference import why_reference
from flashmore.upgrade.edits import edited
from flashmore.upgrade.emit.imports import import_edits
from flashmore.upgrade.emit.words import atom
from flashmore.upgrade.formulas.formula import Formulas
from flashmore.upgrade.formulas.fragment import fragment
from flashmore.upgrade.formulas.match import Match
from flashmore.upgrade.rewrite import deeper, has_long_string
from flashmore.upgrade.rules.rule import Parsed
from flashmore.upgrade.site import Edit, Site, Verdict
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.functions import FunctionOf, why_seen
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.libraries import ADVICE as IMPORT_TORCH
from flashmore.upgrade.source.libraries import may_be_numpys, not_torchs
from flashmore.upgrade.source.module import FUNCTIONAL
from flashmore.upgrade.source.nodes import Blocks, Stability
from flashmore.upgrade.source.operations import CASTS
from flashmore.upgrade.source.scopes import MODULE, SEE_LOCALS
from flashmore.upgrade.text import comments

_OPERATORS = frozenset("+-*/@%=,([{<>|&^~")
"""After one of them, a parenthesis is no call's."""
_CARRIED = ("phi", "loop", "carried")
_PERHAPS = ("carried", "global", "missing")
"""What a name means that an earlier round of a loop may have set."""


class FormulaSite:
    """One place, and how it is rewritten.

    Args:
        parsed: the file.
        found: the function.
        flow: what it computes.
        match: the formula in it.
        formulas: those of the rule.
        code: the rule's.
    """

    def __init__(
        self, parsed: Parsed, found: FunctionOf, flow: Flow, match: Match, formulas: Formulas, code: str
    ) -> None:
        self.parsed = parsed
        self.text = parsed.text
        self.found = found
        self.flow = flow
        self.match = match
        self.formulas = formulas
        self.code = code
        assert match.root.statement is not None
        self.statement = match.root.statement
        self.blocks = Blocks(flow.function)

    def site(self) -> Site:
        """The place: rewritten, or refused with the reason."""
        formula = self.match.formula
        if self._has_fused_branch():
            return self._site("already fused", "another branch of this function is already fused")
        try:
            if not formula.call:
                raise Refuse(formula.reason, formula.advice)
            return self._rewritten()
        except Refuse as refusal:
            return self._site("refused", refusal.reason, refusal.advice)

    def _has_fused_branch(self) -> bool:
        """Whether the function calls PyTorch's own under a condition under which these lines do not run."""
        return any(
            here.node is not None and here.node is there.node and here.holds != there.holds
            for value in self.flow.values
            if value.op in self.formulas.fused
            for here in self.match.root.conditions
            for there in value.conditions
        )

    def _site(self, verdict: Verdict, reason: str, advice: str = "") -> Site:
        node = self.match.root.node
        assert isinstance(node, ast.expr)
        start = min([node.lineno, *(each.lineno for each in self.before)])
        return Site(
            self.parsed.path, start, node.end_lineno or start, self.found.name, verdict, reason, advice,
            rule=self.match.formula.name, code=self.code,
        )  # fmt: skip

    @cached_property
    def before(self) -> list[ast.stmt]:
        """The statements before the last one that compute nothing but a part of the formula, in order."""
        found = {
            value.statement
            for value in self.match.region
            if value.statement not in (None, self.statement) and value.node is not None
        }
        return sorted((each for each in found if each is not None), key=lambda each: each.lineno)

    def _rewritten(self) -> Site:
        formula, module = self.match.formula, self.flow.module
        if (why := why_reference(module, self.parsed.path, self.formulas.fused)) is not None:
            raise Refuse(f"a reference is left alone: {why}")
        self._check_statements()
        self._check_uses()
        self._check_seen()
        self._check_in_place()
        nodes = [value.node for value in self.match.tensors if isinstance(value.node, ast.Call)]
        other = not_torchs(module.tree, self.flow.owner, self.flow.function, nodes)
        other = other or may_be_numpys(module.tree, self.flow.owner, self.flow.function, nodes)
        if other is not None:
            raise Refuse(other, IMPORT_TORCH)
        functional, imported = self._functional()
        words = self._words()
        self._check_between()
        step(len(self.text.source) // 50)  # its diff is made from the whole file
        made = formula.call.format(functional=functional, **words)
        edits, guard = self._edits(made), None
        if formula.guard:
            guard = formula.guard.format(**{**words, "x": atom(words["x"])})
            edits = (self._guarded(made, guard),)
        edits = (*import_edits(imported, module, self.text), *edits)
        require_compilable(edited(self.text.source, edits))
        return replace(
            self._site("rewritten", formula.reason),
            edits=edits,
            guard=guard,
            assumptions=tuple(self._assumed()),
            fragment=fragment(self.flow, self.match, self.formulas, self.before, words),
            notes=tuple(self._notes()),
        )

    def _check_statements(self) -> None:
        """Whether what falls away are plain assignments in the block of the last statement."""
        if self.statement not in self.blocks.places:
            raise Refuse("the lines are not statements of this function")
        block = self.blocks.places[self.statement].block
        for each in self.before:
            if each not in self.blocks.places or self.blocks.places[each].block is not block:
                raise Refuse(f"a part of it is computed in another block, in line {each.lineno}")
            if not self._targets(each):
                raise Refuse(f"a part of it is computed in line {each.lineno}, which does more than that")
        for each in self.blocks.ancestors(self.statement):
            place = self.blocks.places[each]
            if getattr(place.parent, "handlers", []) and place.block is getattr(place.parent, "body", None):
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
                    line = getattr(user.node, "lineno", self.statement.lineno)
                    raise Refuse(f"a part of it is used in line {line}, too")

    def _check_seen(self) -> None:
        """Whether no other code reads what a file's own lines bind."""
        lines = [*self.before, self.statement]
        if self.flow.function.name == MODULE and (why := why_seen(self.flow.module, lines)) is not None:
            raise Refuse(why)

    def _check_in_place(self) -> None:
        """Whether nothing changes in place what the gradient of the call is computed from."""
        kept, name = (self.match.x, "input")
        if self.formulas.keeps_result:
            kept, name = (self.match.root, "result")
        line = changed_in_place(self.flow, kept)
        if line is not None:
            raise Refuse(f"its {name} is changed in place in line {line}, and its gradient needs it")

    @property
    def can_be_written(self) -> bool:
        """Whether all that the call is given has a name where it is written; a refusal needs none."""
        with suppress(Refuse):
            return not self.match.formula.call or bool(self._words())
        return False

    def _words(self) -> dict[str, str]:
        """What the call is given, by the words of the formula's text."""
        words: dict[str, str] = {role: self._word(value) for role, value in self.match.inputs.items()}
        shape = self._shape() if "{shape}" in self.match.formula.call else ""
        return {**words, "x": self._word(self.match.x), "shape": shape}

    def _word(self, value: Value | float) -> str:
        """The text of an input that means the same where the call is written."""
        if isinstance(value, float):
            return repr(value)
        own = [
            node
            for statement in (*self.before, self.statement)
            for node in walk(statement)
            if isinstance(node, ast.expr)
            and self.flow.seen.get(node) is value
            and isinstance(getattr(node, "ctx", ast.Load()), ast.Load)
        ]
        stability = Stability(self.flow)
        inside = {id(node) for node in walk(self.match.root.node)} if self.match.root.node else set()
        plain = [node for node in own if isinstance(node, (ast.Name, ast.Attribute, ast.Constant))]
        ways = (
            (node for node in plain if stability.holds(node, self.statement)),
            (node for node in own if id(node) in inside),
            (node for node in own if stability.holds(node, self.statement) and self._is_pure(node)),
        )
        for node in (each for way in ways for each in way):
            return self.text.of(node)
        raise Refuse(
            "its input has no name that means the same in its last line",
            "assign the input to a name before it",
        )

    def _is_pure(self, node: ast.expr) -> bool:
        return next(effects(node, self.flow.module), None) is None

    def _shape(self) -> str:
        """The text of a tensor with x's shape, which is read once more."""
        x: Value | None = self.match.x
        while x is not None:
            with suppress(Refuse):
                text = self._word(x)
                if isinstance(ast.parse(text, mode="eval").body, (ast.Name, ast.Attribute)):
                    return text
            x = x.args[0] if x.op in CASTS and x.args else None  # which has the same shape
        raise Refuse("its input is not a name", "assign the input to a name, in its own statement")

    def _check_between(self) -> None:
        """Whether nothing has an effect between the first line that falls away and the call."""
        if not self.before or self.match.root.node is None:
            return
        start, end = self.text.span(self.before[0])[0], self.text.span(self.match.root.node)[0]
        for said, node in effects(self.flow.function, self.flow.module):
            if start <= self.text.span(node)[1] <= end:
                raise Refuse(f"`{said}` in line {getattr(node, 'lineno', 0)} runs between its lines")

    def _functional(self) -> tuple[str, str | None]:
        """How torch.nn.functional is written here, and the import that this needs."""
        module = self.flow.module
        known = module.spelling(FUNCTIONAL, self.flow.function)
        if known is not None:
            return known, None
        if "F" in module.names:
            raise Refuse(
                f"`F` has another meaning: see line {module.names['F']}", f"import {FUNCTIONAL} as F"
            )
        return "F", f"import {FUNCTIONAL} as F"

    def _lines(self) -> tuple[int, int]:
        first = self.before[0] if self.before else self.statement
        return self.text.whole_lines(first)[0], self.text.whole_lines(self.statement)[1]

    def _edits(self, made: str) -> tuple[Edit, ...]:
        """The call in the place of the formula, without the lines before it; their comments stay."""
        edits = [Edit(*self._span(), made)]
        for each in self.before:
            start, end = self.text.whole_lines(each)
            self._own_lines(each)
            kept = comments(self.text.source[start:end])
            indent = self.text.indent(each)
            edits.append(Edit(start, end, "".join(f"{indent}{note}{self.text.newline}" for note in kept)))
        return tuple(sorted(edits, key=lambda edit: edit.start))

    def _span(self) -> tuple[int, int]:
        """What the call replaces: with the parentheses around it, where it is all that a statement has."""
        node = self.match.root.node
        assert node is not None
        start, end = self.text.span(node)
        if comments(self.text.source[start:end]):
            raise Refuse("a comment stands inside of it", "move the comment to a line of its own")
        source = self.text.source
        if getattr(self.statement, "value", None) is not node:
            grouped = source[start - 1] == "(" and source[end : end + 1] == ")"
            before = source[: start - 1].rstrip(" ")[-1:]
            return (start - 1, end + 1) if grouped and before in _OPERATORS else (start, end)
        _, last = self.text.span(self.statement)
        first = start
        while source[first - 1] in "( \t\r\n\\":
            first -= 1
        outside = source[first:start] + source[end:last]
        if "#" in outside or not outside.startswith(" ") or source[first - 1] not in "=n":
            return start, end  # neither after the sign of an assignment nor after `return`
        return first + 1, last

    def _own_lines(self, statement: ast.stmt) -> None:
        start, end = self.text.span(statement)
        first, last = self.text.whole_lines(statement)
        after = self.text.source[end:last].strip()
        if self.text.source[first:start].strip() or (after and not after.startswith("#")):
            raise Refuse("several statements share a line", "put each on its own line")

    def _guarded(self, made: str, guard: str) -> Edit:
        """The call where the guard holds, the old lines otherwise."""
        block = self.blocks.places[self.statement].block
        first = block.index(self.before[0]) if self.before else block.index(self.statement)
        spanned = block[first : block.index(self.statement) + 1]
        for each in spanned:
            self._own_lines(each)
        if has_long_string(spanned, self.text):
            raise Refuse("a guard would have to indent a multi-line string")
        if len(spanned) != len(self.before) + 1:
            raise Refuse("other lines stand between its lines")
        start, end = self._lines()
        line, indent = self.text.newline, self.text.indent(self.statement)
        old = self.text.source[start:end]
        old = old if old.endswith(("\n", "\r")) else old + line
        edits = [
            Edit(each.start, each.end, each.text if each.start >= self.text.span(self.statement)[0] else "")
            for each in self._edits(made)
        ]
        new = edited(self.text.source[:end], edits)[start:]
        new = new if new.endswith(("\n", "\r")) else new + line
        return Edit(start, end, f"{indent}if {guard}:{line}{deeper(new)}{indent}else:{line}{deeper(old)}")

    def _assumed(self) -> Iterator[str]:
        operations = {value.op for value in self.match.region}
        for operation, text in self.match.formula.assumptions:
            if not operation or operation in operations:
                yield text

    def _notes(self) -> Iterator[str]:
        for each in self.before:
            start, end = self.text.whole_lines(each)
            if not self.match.formula.guard and comments(self.text.source[start:end]):
                yield f"the comment in line {each.lineno} is kept, and may no longer be right"
