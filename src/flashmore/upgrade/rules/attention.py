"""FM001 manual-attention: softmax of a scaled product of queries and keys, times values."""

import ast
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import step
from flashmore.upgrade.checks.beside import OF_TORCH, beside
from flashmore.upgrade.checks.compiled import require_compilable
from flashmore.upgrade.checks.contract import advice_about_weights
from flashmore.upgrade.checks.effects import check_effects, uncalled
from flashmore.upgrade.checks.gradients import check_gradients
from flashmore.upgrade.checks.guards import check_default_use
from flashmore.upgrade.checks.names import check_names
from flashmore.upgrade.checks.reference import FUSED, why_fallback, why_reference
from flashmore.upgrade.checks.unused import kept_comments, unused
from flashmore.upgrade.edits import apart, edited
from flashmore.upgrade.emit.emission import Emitter
from flashmore.upgrade.emit.words import Words
from flashmore.upgrade.fragment.functions import fragment
from flashmore.upgrade.patterns.scores import Scores
from flashmore.upgrade.patterns.terms import Term, Unfit
from flashmore.upgrade.patterns.weights import is_named_softmax, why_not_followed
from flashmore.upgrade.plan import Attention, attention, candidates, choices, values_of
from flashmore.upgrade.rewrite import Rewriting
from flashmore.upgrade.rules.changed import Changed
from flashmore.upgrade.rules.functions import in_functions, mentions
from flashmore.upgrade.rules.not_followed import not_followed
from flashmore.upgrade.rules.rule import Parsed, Rule
from flashmore.upgrade.site import Site, Verdict
from flashmore.upgrade.source.escape import Escape
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.functions import FunctionOf
from flashmore.upgrade.source.graph import Value
from flashmore.upgrade.source.libraries import ADVICE as IMPORT_TORCH
from flashmore.upgrade.source.libraries import not_torchs

CODE = "FM001"
_WORTH = re.compile(
    r"@|matmul|bmm|einsum|\bmm\b|\bdot\b|contract|scaled_dot|multi_head_att|efficient_att|flash_attn|flex_att"
)
"""A function without any of these holds no attention: it multiplies nothing, and calls no fused kernel."""
_ATTENTION = re.compile(r"softmax|scaled_dot|multi_head_att|efficient_att|flash_attn|flex_att", re.IGNORECASE)
"""A function that cannot be read is reported where it looks like attention."""
_NOT_FOLLOWED = re.compile(r"\blambda\b|^[ \t]*match\b", re.MULTILINE)
"""Where attention may be written that is not followed."""
_NAMED = re.compile(r"att(n|en)|quer", re.IGNORECASE)
"""So is a softmax of a product without values, if the function's names speak of attention."""


def find(rule: Rule, parsed: Parsed) -> Iterator[Site]:
    """Every place in a file that looks like attention."""
    sites = [*in_functions(parsed, rule.code, _WORTH, _sites_of, _ATTENTION)]
    if _NOT_FOLLOWED.search(parsed.text.source):
        known = {(each.line, each.end_line) for each in sites}
        sites += [each for each in not_followed(parsed, rule.code) if (each.line, each.end_line) not in known]
    return (site for site in sites if site.verdict != "refused" or site.symbol not in parsed.moved)


def _sites_of(parsed: Parsed, found: FunctionOf, depth: int = 0) -> list[Site]:
    flow = parsed.flow(found)
    softmaxes = [value for value in flow.values if value.node is not None and _is_softmax(value)]
    fused = list({id(each.node): each for each in flow.values if _fused_name(each) in FUSED}.values())
    if not softmaxes and not fused:
        return []
    search = Search(parsed, flow, found.name, fused, depth)
    return [*search.already(), *apart(search.sites(softmaxes))]


def _is_softmax(value: Value) -> bool:
    return value.op == "softmax" or (is_named_softmax(value) and not value.inner)


def _fused_name(value: Value) -> str:
    if value.op == "call":
        return str(value.detail).rsplit(".", 1)[-1]
    return value.op


class Search(Changed):
    """The attentions of one function."""

    def __init__(self, parsed: Parsed, flow: Flow, name: str, fused: list[Value], depth: int) -> None:
        super().__init__(parsed, flow, name, depth)
        self.fused = fused
        self._of_torch = [each for each in fused if _fused_name(each) in OF_TORCH]

    def again(self, parsed: Parsed, found: FunctionOf, depth: int) -> list[Site]:
        """The attentions of a changed function."""
        return _sites_of(parsed, found, depth)

    def already(self) -> list[Site]:
        """The calls that are fused already."""
        return [
            self._site(value, value, "already fused", f"`{_fused_name(value)}` is called")
            for value in self.fused
        ]

    def sites(self, softmaxes: list[Value]) -> list[Site]:
        """The attentions written by hand: rewritten, or refused with the reason."""
        done: set[ast.AST] = set()
        result: list[Site] = []
        refused: list[tuple[list[Value], Site]] = []
        held: list[tuple[list[Value], Site]] = []
        spread_out: list[tuple[Value, Term]] = []
        for final, side, chain in candidates(self.flow, self.shapes):
            if final.inner:
                if isinstance(chain, Term):
                    spread_out.append((final, chain))
                continue
            if isinstance(chain, Unfit):
                for softmax in self._softmaxes_behind(chain.value, softmaxes):
                    refused.append(([softmax], self._refusal(softmax, final, chain.reason, chain.advice)))
                continue
            own = [term.value for term in chain.walk() if term.kind == "softmax"]
            if any(value.node in done for value in own):
                continue
            site = self._one(final, side, chain)
            if site.verdict == "refused":  # another product with the same weights may be one to rewrite
                held.append((own, site))
                continue
            result.append(site)
            done |= {value.node for value in own if value.node is not None}
        for final, chain in spread_out:
            own = [term.value for term in chain.walk() if term.kind == "softmax"]
            if not {value.node for value in own}.isdisjoint(done):
                continue
            if (made := self.with_other_lines(final, chain)) is not None:
                result.append(made)
                done |= {value.node for value in own if value.node is not None}
            elif values_of(self.flow, self.shapes, final, chain):
                reason = "the product with the values is computed inside a helper"
                held.append((own, self._refusal(own[0], final, reason, "move it into this function")))
        for own, site in (*held, *refused):
            if own[0].node not in done:
                done |= {value.node for value in own if value.node is not None}
                result.append(site)
        for softmax in softmaxes:
            if softmax.node not in done and (alone := self._alone(softmax)) is not None:
                done.add(softmax.node)  # type: ignore[arg-type]
                result.append(alone)
        return result

    def _softmaxes_behind(self, value: Value, softmaxes: list[Value]) -> list[Value]:
        found, stack, seen = [], [value], set()
        while stack:
            each = stack.pop()
            if each in seen:
                continue
            seen.add(each)
            if _is_softmax(each):
                found.append(each)
                continue
            stack.extend(each.inputs())
        return [each for each in softmaxes if each in found]

    def _alone(self, softmax: Value) -> Site | None:
        """A softmax over a product, whose weights no product takes."""
        if not softmax.args or softmax.inner:
            return None
        scores = softmax.args[1 if softmax.op == "call" and len(softmax.args) > 1 else 0]
        chain = Scores(self.flow.module, self.shapes).walk(scores)
        if softmax.op == "call" and (isinstance(chain, Term) or chain.product):
            return self._refusal(softmax, softmax, why_not_followed(softmax), "call torch.softmax here")
        if isinstance(chain, Term):
            if not mentions(self.flow.function, self.text, _NAMED):
                return None  # of a classifier, a contrastive loss or the like
            return self._refusal(softmax, softmax, "no product with values follows the softmax")
        if chain.product:
            return self._refusal(softmax, softmax, chain.reason, chain.advice)
        return None

    def _one(self, final: Value, side: int, chain: Term) -> Site:
        softmax = next(term.value for term in chain.walk() if term.kind == "softmax")
        start = softmax
        try:
            found = attention(self.flow, self.shapes, final, side, chain)
            start = found.product.value
            whole = self._understood(found)
            if whole.verdict == "rewritten" and whole.fragment is None:  # a branch may be one to test
                branch = self._on_branches(1, final, side, chain)
                return branch if branch is not None and branch.fragment is not None else whole
            return whole
        except Refuse as refusal:
            made = (
                self._on_branches(1, final, side, chain)
                or self.with_other_lines(final, chain)
                or self._on_branches(2, final, side, chain)
            )
            if made is not None:
                return made
            return self._refusal(start, final, refusal.reason, refusal.advice)
        except Escape as escape:
            line = getattr(escape.value.node, "lineno", None)
            if escape.how == "returned" and (site := self.without_weights(chain)) is not None:
                return site
            where = f" in line {line}" if line else ""
            reason = f"scores or weights are {escape.how}{where}"
            advice = advice_about_weights(self.flow, escape.value, escape.how)
            return self._refusal(softmax, final, reason, advice)

    def _on_branches(self, count: int, final: Value, side: int, chain: Term) -> Site | None:
        """The attention under so many conditions: the first ones for which it can be rewritten."""
        for chosen in combinations(choices(self.flow, self.shapes, chain), count):
            with suppress(Refuse, Escape):
                return self._understood(attention(self.flow, self.shapes, final, side, chain, chosen))
        return None

    def _understood(self, found: Attention) -> Site:
        near = beside((found.product.value, found.final), self._of_torch, self.flow)
        if near is not None and near.switch:
            return self._site(found.product.value, found.final, "already fused", *near.said(self.flow))
        return self._rewritten(found)

    def _rewritten(self, found: Attention) -> Site:
        if (reference := why_reference(self.flow.module, self.path, self.flow.function)) is not None:
            raise Refuse(f"a reference is left alone: {reference}")
        if (fallback := why_fallback(self.flow.module, self.flow.function.name)) is not None:
            raise Refuse(f"a fallback is left alone: {fallback}")
        step(len(self.text.source) // 50)  # its diff is made from the whole file
        words = Words(self.text)
        emission = Emitter(found, words, self.blocks).emit()
        rewriting = Rewriting(found, emission, words, self.blocks)
        edits, guard = rewriting.guarded()
        made = [found.final, *(product.value for product in found.products), *found.softmaxes]
        other = not_torchs(self.flow, [value.node for value in made])
        if other is not None:
            raise Refuse(other, IMPORT_TORCH)
        unguarded, changed = edited(self.text.source, rewriting.edits()), edited(self.text.source, edits)
        check_default_use(rewriting)
        check_names(rewriting)
        for each in {unguarded, changed}:
            require_compilable(each)
        check_effects(rewriting, unguarded)
        graded = check_gradients(found)
        block, first, last = rewriting.region()
        return Site(
            self.path, block[first].lineno, block[last].end_lineno or block[last].lineno, self.name,
            "rewritten", "softmax of a scaled product, times values", guard=guard, rule=emission.rule,
            edits=edits, code=CODE,
            assumptions=tuple(emission.assumptions), fragment=fragment(rewriting, changed),
            notes=(*kept_comments(rewriting), *unused(rewriting, changed)),
            uncalled=tuple(uncalled(found).values()), graded=graded,
        )  # fmt: skip

    def _refusal(self, first: Value, last: Value, reason: str, advice: str = "") -> Site:
        near = beside((first, last), self._of_torch, self.flow)
        if near is None:
            return self._site(first, last, "refused", reason, advice)
        fused, prefer = near.said(self.flow)
        if near.switch:
            return self._site(first, last, "already fused", fused, prefer)
        return self._site(first, last, "already fused", f"{fused}; here {reason}", advice)

    def _site(self, first: Value, last: Value, verdict: Verdict, reason: str, advice: str = "") -> Site:
        nodes = [value.node for value in (first, last) if isinstance(value.node, (ast.expr, ast.stmt))]
        start = min(node.lineno for node in nodes)
        end = max(node.end_lineno or node.lineno for node in nodes)
        return Site(self.path, start, end, self.name, verdict, reason, advice, code=CODE)


RULE = Rule(
    CODE,
    "manual-attention",
    "Use scaled_dot_product_attention instead of a softmax of products.",
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html",
    r"[sS]oftmax|scaled_dot_product|multi_head_attention_forward|memory_efficient_attention|flash_attn"
    r"|flex_att|\bexp\(",
    find,
    needs=(
        ("enable_gqa", "2.5"),
        ("get_autocast_dtype(", "2.4"),
        ("scale=", "2.1"),
        ("scaled_dot_product_attention(", "2.0"),
    ),
    second_derivatives=False,
)
