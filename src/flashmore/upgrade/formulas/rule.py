"""How a rule finds lines which compute one of some formulas."""

import re
from collections.abc import Callable, Iterator

from flashmore.upgrade.edits import apart
from flashmore.upgrade.formulas.formula import Formulas
from flashmore.upgrade.formulas.match import Match, matches
from flashmore.upgrade.formulas.rewrite import FormulaSite
from flashmore.upgrade.rules.functions import in_functions
from flashmore.upgrade.rules.rule import Parsed, Rule
from flashmore.upgrade.site import Site
from flashmore.upgrade.source.functions import FunctionOf


def finding(formulas: Formulas) -> Callable[[Rule, Parsed], Iterator[Site]]:
    """The `find` of a rule that replaces lines which compute one of some formulas.

    The rule's `worth` must be in every function with such lines.
    """

    def find(rule: Rule, parsed: Parsed) -> Iterator[Site]:
        def search(parsed: Parsed, found: FunctionOf) -> list[Site]:
            def made(match: Match) -> FormulaSite:
                return FormulaSite(parsed, found, match, formulas, rule.code)

            chosen = matches(parsed.flow(found), formulas, lambda match: made(match).can_be_written)
            return apart(made(each).site() for each in chosen)

        return in_functions(parsed, rule.code, re.compile(rule.worth), search)

    return find
