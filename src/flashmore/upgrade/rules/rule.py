"""What a rule of `flashmore upgrade` is: a documented replacement, and how to find where it applies."""

import re
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field

from flashmore.upgrade.budget import Budget
from flashmore.upgrade.site import Site
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.functions import FunctionOf
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import Function
from flashmore.upgrade.text import Text


@dataclass(frozen=True)
class Parsed:
    """A file that was parsed once, for all rules.

    Args:
        text: its source.
        module: its syntax tree and names.
        path: what to call it.
        budget: what all rules together may do in it.
        flows: the functions that were read so far.
        unread: those that are too much for a search; the first rule that looks at them reports it.
        moved: the names of those whose lines a rewrite puts in the place of their calls.
    """

    text: Text
    module: Module
    path: str
    budget: Budget
    flows: dict[Function, Flow] = field(default_factory=dict)
    unread: set[Function] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)

    def flow(self, found: FunctionOf) -> Flow:
        """A function as a graph of values, which no rule changes."""
        if found.node not in self.flows:
            self.flows[found.node] = Flow(self.module, found.owner, found.node, found.enclosing).run()
        return self.flows[found.node]


@dataclass(frozen=True)
class Rule:
    """One documented replacement.

    Args:
        code: such as "FM001"; from "FM101" on, advice that changes nothing.
        name: in kebab-case.
        summary: one line, imperative.
        documentation: the page of PyTorch's documentation.
        worth: a regular expression; a file without it holds nothing for the rule.
        find: the places in a file, in any order; it is given the rule, too.
        needs: what a rewrite may contain, and the first version of torch that has it, the newest first.
        second_derivatives: whether the replacement can be differentiated twice.
        setup: whether its lines run once, to make what lives on, such as an optimizer.
    """

    code: str
    name: str
    summary: str
    documentation: str
    worth: str
    find: Callable[["Rule", Parsed], Iterable[Site]]
    _: KW_ONLY
    needs: tuple[tuple[str, str], ...] = ()
    second_derivatives: bool = True
    setup: bool = False

    def may_apply(self, data: bytes) -> bool:
        """Whether a file may hold anything for the rule."""
        return re.search(self.worth.encode(), data) is not None
