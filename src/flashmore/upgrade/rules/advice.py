"""Rules that change nothing: what to do about a place, where that is beyond a safe rewrite."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flashmore.upgrade.budget import Exceeded, limited
from flashmore.upgrade.rules.rule import Parsed, Rule
from flashmore.upgrade.site import Site

TEST = re.compile(r"test_.*\.py|.*_test\.py|conftest\.py")
"""Files of tests, whose speed is nobody's concern here."""
_ON_GPU = re.compile(r"cuda|\bxpu\b|\bmps\b")


@dataclass(frozen=True)
class Said:
    """What there is to say.

    Args:
        node: the lines that it is about; of a loop the first line.
        symbol: the function or the class that they stand in.
        reason: what they do.
        advice: what would be faster.
    """

    node: ast.stmt | ast.expr
    symbol: str
    reason: str
    advice: str


def advice_rule(
    code: str,
    name: str,
    summary: str,
    documentation: str,
    worth: str,
    search: Callable[[Parsed], Iterable[Said]],
) -> Rule:
    """A rule without edits.

    Args:
        code: see `Rule`, as the next three.
        name: in kebab-case.
        summary: one line.
        documentation: a URL.
        worth: a regular expression; a file without it holds nothing.
        search: what there is to say about a file; nothing where that is not sure.
    """

    def find(parsed: Parsed) -> Iterator[Site]:
        if TEST.fullmatch(Path(parsed.path).name):
            return
        with suppress(Exceeded, RecursionError), limited(parsed.budget):
            for said in search(parsed):
                node = said.node
                end = node.lineno if isinstance(node, ast.stmt) else node.end_lineno or node.lineno
                yield Site(
                    parsed.path, node.lineno, end, said.symbol, "advice", said.reason, said.advice, code=code
                )  # fmt: skip

    return Rule(code, name, summary, documentation, re.compile(worth.encode()), find)


def runs_on_gpu(parsed: Parsed) -> bool:
    """Whether a file says that it may run on a GPU."""
    return _ON_GPU.search(parsed.text.source) is not None
