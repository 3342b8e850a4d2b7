"""What a rule of `flashmore upgrade` is: a documented replacement, and how to find where it applies."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flashmore.upgrade.budget import Budget
from flashmore.upgrade.site import Site
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.text import Text


@dataclass(frozen=True)
class Parsed:
    """A file that was parsed once, for all rules.

    Args:
        text: its source.
        module: its syntax tree and names.
        path: what to call it.
        budget: what all rules together may do in it.
    """

    text: Text
    module: Module
    path: str
    budget: Budget


@dataclass(frozen=True)
class Rule:
    """One documented replacement.

    Args:
        code: such as "FM001"; from "FM101" on, advice that changes nothing.
        name: in kebab-case.
        summary: one line, imperative.
        documentation: the page of PyTorch's documentation.
        worth: a file without it holds nothing for the rule.
        find: the places in a file, in any order.
    """

    code: str
    name: str
    summary: str
    documentation: str
    worth: re.Pattern[bytes]
    find: Callable[[Parsed], Iterable[Site]]
