"""`flashmore rule`: explain the rules of `flashmore upgrade`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.markdown import Markdown

from flashmore.cli.parse import parse
from flashmore.errors import UsageError
from flashmore.terminal import Terminal, write
from flashmore.upgrade.rules import RULES, rule
from flashmore.upgrade.rules.explanation import page


@dataclass(frozen=True)
class ExplainRule:
    """Explain a rule of `flashmore upgrade`: what it replaces, an example, and how exact that is."""

    code: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="CODE")] = None
    """The rule's code, such as FM001, or its name."""
    all: bool = False
    """Explain all rules."""


def main(argv: Sequence[str]) -> int:
    """Run `flashmore rule`."""
    command = parse(ExplainRule, "rule", argv)
    if (command.code is None) is not command.all:
        found = "both" if command.all else "none"
        raise UsageError("the code of a rule, or --all", found, ", ".join(each.code for each in RULES))
    chosen = RULES if command.code is None else (rule(command.code),)
    text = "\n".join(map(page, chosen))
    console = Terminal()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        write(text)
    return 0
