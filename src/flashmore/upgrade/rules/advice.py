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
from flashmore.upgrade.source.loops import training_loops

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


def saying(search: Callable[[Parsed], Iterable[Said]]) -> Callable[[Rule, Parsed], Iterator[Site]]:
    """The `find` of a rule without edits.

    Args:
        search: what there is to say about a file; nothing where that is not sure.
    """

    def find(rule: Rule, parsed: Parsed) -> Iterator[Site]:
        if TEST.fullmatch(Path(parsed.path).name):
            return
        with suppress(Exceeded, RecursionError), limited(parsed.budget):
            for said in search(parsed):
                node = said.node
                end = node.lineno if isinstance(node, ast.stmt) else node.end_lineno or node.lineno
                yield Site(
                    parsed.path, node.lineno, end, said.symbol, "advice", said.reason, said.advice,
                    code=rule.code,
                )  # fmt: skip

    return find


def at_training_loop(
    chosen: re.Pattern[str], reason: str, advice: str
) -> Callable[[Rule, Parsed], Iterator[Site]]:
    """The `find` of a rule about the first loop that trains on a GPU in a file.

    Args:
        chosen: words of a file that has made the choice itself, here or through a library.
        reason: what the loop does.
        advice: what would be faster.
    """

    def search(parsed: Parsed) -> Iterator[Said]:
        if runs_on_gpu(parsed) and not chosen.search(parsed.text.source):
            for place in training_loops(parsed.module)[:1]:
                yield Said(place.loop, place.symbol, reason, advice)

    return saying(search)


def runs_on_gpu(parsed: Parsed) -> bool:
    """Whether a file says that it may run on a GPU."""
    return _ON_GPU.search(parsed.text.source) is not None
