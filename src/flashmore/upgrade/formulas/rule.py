"""A rule that replaces lines which compute one of some formulas."""

import re
from collections.abc import Iterator

from flashmore.upgrade.edits import apart
from flashmore.upgrade.formulas.formula import Formulas
from flashmore.upgrade.formulas.match import Match, matches
from flashmore.upgrade.formulas.rewrite import FormulaSite
from flashmore.upgrade.rules.functions import in_functions
from flashmore.upgrade.rules.rule import Parsed, Rule
from flashmore.upgrade.site import Site
from flashmore.upgrade.source.functions import FunctionOf


def formula_rule(
    code: str,
    name: str,
    summary: str,
    documentation: str,
    words: str,
    formulas: Formulas,
    needs: tuple[tuple[str, str], ...] = (),
) -> Rule:
    """The rule.

    Args:
        code: see `Rule`, as the next three and the last.
        name: in kebab-case.
        summary: one line.
        documentation: a URL.
        words: a regular expression; a function without it is none of the formulas.
        formulas: what is recognised.
        needs: of torch's versions.
    """
    worth = re.compile(words)

    def search(parsed: Parsed, found: FunctionOf) -> list[Site]:
        flow = parsed.flow(found)

        def made(match: Match) -> FormulaSite:
            return FormulaSite(parsed, found, flow, match, formulas, code)

        chosen = matches(flow, formulas, lambda match: made(match).can_be_written)
        return apart(made(each).site() for each in chosen)

    def find(parsed: Parsed) -> Iterator[Site]:
        return in_functions(parsed, code, worth, search)

    return Rule(code, name, summary, documentation, re.compile(words.encode()), find, needs)
