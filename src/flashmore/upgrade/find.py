"""Searches a source for what the rules replace; reads only, runs nothing of it, and needs no torch."""

import ast
from collections.abc import Collection

from flashmore.upgrade.budget import FILE_STEPS, Budget
from flashmore.upgrade.edits import overlap
from flashmore.upgrade.project.definitions import Definitions
from flashmore.upgrade.rules import CODES, RULES
from flashmore.upgrade.rules.rule import Parsed
from flashmore.upgrade.site import Site
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.text import Text


def find_sites(
    source: str, path: str = "<string>", codes: Collection[str] = CODES, elsewhere: Definitions | None = None
) -> list[Site]:
    """Every place in a source that looks like what a rule replaces, in order of its lines.

    Args:
        source: the text of a Python file.
        path: what to call the file in the answer.
        codes: the rules to search for.
        elsewhere: the definitions of other files.

    Raises:
        SyntaxError: the source is not Python of this version.
        ValueError: the source holds null bytes.
    """
    parsed = Parsed(Text(source), Module(ast.parse(source), elsewhere), path, Budget(FILE_STEPS))
    data = source.encode(errors="surrogatepass")
    sites: list[Site] = []
    for rule in RULES:
        if rule.code in codes and rule.may_apply(data):
            sites += _beside([*rule.find(rule, parsed)], sites)
    return sorted(_without_inner(sites), key=lambda site: (site.line, site.end_line))


def _beside(new: list[Site], sites: list[Site]) -> list[Site]:
    """Those that change no line which an earlier rule rewrites: a cross entropy holds a log-softmax."""
    made = {edit for site in sites for edit in site.edits}
    return [site for site in new if not any(overlap(one, other) for one in site.edits for other in made)]


def _without_inner(sites: list[Site]) -> list[Site]:
    """Without places that are refused by one rule, in lines that another one rewrites."""
    return [
        site
        for site in sites
        if site.verdict != "refused"
        or not any(
            other.verdict == "rewritten"
            and other.code != site.code
            and other.line <= site.line <= site.end_line <= other.end_line
            for other in sites
        )
    ]


def is_worth_parsing(data: bytes) -> bool:
    """Whether a file may hold anything for any rule."""
    return any(rule.may_apply(data) for rule in RULES)
