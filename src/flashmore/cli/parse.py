"""Words of the command line into a typed command, by tyro; flat option names everywhere."""

from collections.abc import Sequence
from typing import TypeVar

import tyro

Command = TypeVar("Command")

STYLE = (
    tyro.conf.OmitArgPrefixes,  # --steps, never --recipe.steps
    tyro.conf.FlagCreatePairsOff,  # --json, without --no-json
    tyro.conf.OmitSubcommandPrefixes,
)


def parse(command: type[Command], verb: str, argv: Sequence[str], default: Command | None = None) -> Command:
    """Parse the words after a verb.

    Args:
        command: a dataclass; its docstring and its fields' docstrings are the help.
        verb: the words before, such as `train`.
        argv: the words to parse.
        default: values for what `argv` leaves out; None means the dataclass's own.

    Raises:
        SystemExit: 0 after --help, 2 for words that do not fit; both have been printed.
    """
    if default is None:
        return tyro.cli(command, prog=f"flashmore {verb}", args=argv, config=STYLE)
    return tyro.cli(command, prog=f"flashmore {verb}", args=argv, default=default, config=STYLE)


def value_of(option: str, argv: Sequence[str]) -> str | None:
    """The value of one option before anything else is parsed: the defaults of the rest may depend on it."""
    for at, word in enumerate(argv):
        if word == option and at + 1 < len(argv):
            return argv[at + 1]
        if word.startswith(option + "="):
            return word.removeprefix(option + "=")
    return None
