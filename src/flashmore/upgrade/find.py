"""Searches a source for what the rules replace; reads only, runs nothing of it, and needs no torch."""

import ast
from collections.abc import Collection

from flashmore.upgrade.budget import FILE_STEPS, Budget
from flashmore.upgrade.rules import CODES, RULES
from flashmore.upgrade.rules.rule import Parsed
from flashmore.upgrade.site import Site
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.text import Text


def find_sites(source: str, path: str = "<string>", codes: Collection[str] = CODES) -> list[Site]:
    """Every place in a source that looks like what a rule replaces, in order of its lines.

    Args:
        source: the text of a Python file.
        path: what to call the file in the answer.
        codes: the rules to search for.

    Raises:
        SyntaxError: the source is not Python of this version.
        ValueError: the source holds null bytes.
    """
    parsed = Parsed(Text(source), Module(ast.parse(source)), path, Budget(FILE_STEPS))
    data = source.encode(errors="surrogatepass")
    rules = [each for each in RULES if each.code in codes]
    sites = [site for rule in rules if rule.worth.search(data) for site in rule.find(parsed)]
    return sorted(sites, key=lambda site: (site.line, site.end_line))


def is_worth_parsing(data: bytes) -> bool:
    """Whether a file may hold anything for any rule."""
    return any(rule.worth.search(data) for rule in RULES)
