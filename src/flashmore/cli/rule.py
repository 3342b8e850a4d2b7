"""`flashmore rule`: explain the rules of `flashmore upgrade`."""

from typing import Annotated

import tyro
from rich.markdown import Markdown

from flashmore.cli.parse import command
from flashmore.errors import UsageError
from flashmore.terminal import Terminal, write
from flashmore.upgrade.rules import RULES, rule
from flashmore.upgrade.rules.explanation import page


@command("rule")
def main(
    code: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="CODE")] = None,
    *,
    all: bool = False,
) -> int:
    """Explain a rule of `flashmore upgrade`: what it replaces, an example, and how exact the replacement is.

    Args:
        code: The rule's code, such as FM001, or its name.
        all: Explain all rules.
    """
    if (code is None) is not all:
        found = "both" if all else "none"
        raise UsageError("the code of a rule, or --all", found, ", ".join(each.code for each in RULES))
    chosen = RULES if code is None else (rule(code),)
    text = "\n".join(map(page, chosen))
    console = Terminal()
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        write(text)
    return 0
