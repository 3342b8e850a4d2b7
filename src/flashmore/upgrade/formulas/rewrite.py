"""From a formula that was recognised to the place of a report: its edits, and the two functions of a test."""

import ast
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import step, walk
from flashmore.upgrade.checks.beside import beside
from flashmore.upgrade.checks.compiled import require_compilable
from flashmore.upgrade.checks.effects import effects
from flashmore.upgrade.checks.output import viewed_after_a_move
from flashmore.upgrade.checks.reference import why_reference
from flashmore.upgrade.edits import edited
from flashmore.upgrade.emit.imports import import_edits
from flashmore.upgrade.emit.words import atom
from flashmore.upgrade.formulas.formula import Formulas
from flashmore.upgrade.formulas.fragment import fragment
from flashmore.upgrade.formulas.lines import Lines
from flashmore.upgrade.formulas.match import Match
from flashmore.upgrade.rewrite import guarded, require_own_lines
from flashmore.upgrade.rules.rule import Parsed
from flashmore.upgrade.site import Edit, Site, Verdict
from flashmore.upgrade.source.functions import FunctionOf
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.libraries import ADVICE as IMPORT_TORCH
from flashmore.upgrade.source.libraries import not_torchs
from flashmore.upgrade.source.module import FUNCTIONAL
from flashmore.upgrade.source.nodes import Stability
from flashmore.upgrade.source.operations import CASTS, KEEPS_LAYOUT
from flashmore.upgrade.text import comments

_OPERATORS = frozenset("+-*/@%=,([{<>|&^~")
"""After one of them, a parenthesis is no call's."""


class FormulaSite:
    """One place, and how it is rewritten.

    Args:
        parsed: the file.
        found: the function.
        match: the formula in it.
        formulas: those of the rule.
        code: the rule's.
    """

    def __init__(
        self, parsed: Parsed, found: FunctionOf, match: Match, formulas: Formulas, code: str
    ) -> None:
        self.parsed = parsed
        self.text = parsed.text
        self.found = found
        self.flow = parsed.flow(found)
        self.match = match
        self.formulas = formulas
        self.code = code
        self.lines = Lines(self.flow, match)
        self.statement = self.lines.last

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
        fused = [value for value in self.flow.values if value.op in self.formulas.fused]
        return beside((self.match.root,), fused, self.flow) is not None

    def _site(self, verdict: Verdict, reason: str, advice: str = "") -> Site:
        node = self.match.root.node
        assert isinstance(node, ast.expr)
        start = min([node.lineno, *(each.lineno for each in self.lines.before)])
        return Site(
            self.parsed.path, start, node.end_lineno or start, self.found.name, verdict, reason, advice,
            rule=self.match.formula.name, code=self.code,
        )  # fmt: skip

    def _rewritten(self) -> Site:
        formula, module = self.match.formula, self.flow.module
        if (
            why := why_reference(module, self.parsed.path, self.flow.function, self.formulas.fused)
        ) is not None:
            raise Refuse(f"a reference is left alone: {why}")
        self.lines.check(keeps_result=self.formulas.keeps_result)
        line = None if self.formulas.fused & KEEPS_LAYOUT else viewed_after_a_move(self.flow, self.match.root)
        if line is not None:
            raise Refuse(
                f"its dimensions are moved and viewed in line {line}, and the call's result is contiguous",
                "use `reshape` there",
            )
        nodes = [value.node for value in self.match.tensors if isinstance(value.node, ast.Call)]
        other = not_torchs(self.flow, nodes, plain=True)
        if other is not None:
            raise Refuse(other, IMPORT_TORCH)
        functional, imported = self._functional()
        words = self._words()
        self.lines.check_between(self.text)
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
            fragment=fragment(self.flow, self.match, self.formulas, self.lines.before, words),
            notes=tuple(self._notes()),
        )

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
            for statement in (*self.lines.before, self.statement)
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

    def _edits(self, made: str) -> tuple[Edit, ...]:
        """The call in the place of the formula, without the lines before it; their comments stay."""
        edits = [Edit(*self._span(), made)]
        for each in self.lines.before:
            start, end = self.text.whole_lines(each)
            require_own_lines(each, self.text)
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

    def _guarded(self, made: str, guard: str) -> Edit:
        """The call where the guard holds, the old lines otherwise."""
        block = self.lines.blocks.places[self.statement].block
        first = block.index(self.lines.before[0]) if self.lines.before else block.index(self.statement)
        spanned = block[first : block.index(self.statement) + 1]
        if len(spanned) != len(self.lines.before) + 1:
            raise Refuse("other lines stand between its lines")
        last = self.text.span(self.statement)[0]  # the comments above it stay in the other branch alone
        edits = [each if each.start >= last else replace(each, text="") for each in self._edits(made)]
        return guarded(spanned, edits, guard, self.text)

    def _assumed(self) -> Iterator[str]:
        operations = {value.op for value in self.match.region}
        for operation, text in self.match.formula.assumptions:
            if not operation or operation in operations:
                yield text

    def _notes(self) -> Iterator[str]:
        for each in self.lines.before:
            start, end = self.text.whole_lines(each)
            if not self.match.formula.guard and comments(self.text.source[start:end]):
                yield f"the comment in line {each.lineno} is kept, and may no longer be right"
