"""A rule's search of every function of a file, each within the budget."""

import re
from collections.abc import Callable, Iterable, Iterator

from flashmore.upgrade.budget import DEFECTS, Exceeded, limited
from flashmore.upgrade.rules.rule import Parsed
from flashmore.upgrade.site import Site, Verdict
from flashmore.upgrade.source.functions import FunctionOf, functions
from flashmore.upgrade.source.scopes import Function
from flashmore.upgrade.text import Text

Search = Callable[[Parsed, FunctionOf], Iterable[Site]]


def in_functions(
    parsed: Parsed, code: str, worth: re.Pattern[str], search: Search, like: re.Pattern[str] | None = None
) -> Iterator[Site]:
    """The places of all functions.

    Args:
        parsed: the file.
        code: the rule's.
        worth: a function without it holds nothing.
        search: the places of one function.
        like: a function that cannot be read is reported where it has this; None for a defect alone.
    """
    for found in functions(parsed.module.tree, parsed.module):
        if found.node not in parsed.unread and mentions(found.node, parsed.text, worth):
            yield from _in_function(parsed, found, code, search, like)


def _in_function(
    parsed: Parsed, found: FunctionOf, code: str, search: Search, like: re.Pattern[str] | None
) -> list[Site]:
    """The places of a function; where it is too much for the search, the function itself, refused."""
    function = found.node
    verdict: Verdict = "refused"
    try:
        with limited(parsed.budget):
            return [*search(parsed, found)]
    except Exceeded as exceeded:
        reason, advice = str(exceeded), "split it into several functions"
    except RecursionError:
        reason, advice = "it is nested too deeply", ""
    except DEFECTS as error:
        verdict, reason = "failed", f"{type(error).__name__}: {error}"
        advice = "this is a defect of flashmore: please report it with these lines"
    parsed.unread.add(function)
    if verdict == "refused" if like is None else not mentions(function, parsed.text, like):
        return []
    end = function.end_lineno or function.lineno
    return [Site(parsed.path, function.lineno, end, found.name, verdict, reason, advice, code=code)]


def mentions(function: Function, text: Text, words: re.Pattern[str]) -> bool:
    """Whether any of the words stands in a function."""
    last = function.end_lineno or function.lineno
    return any(words.search(line) for line in text.lines[function.lineno - 1 : last])
