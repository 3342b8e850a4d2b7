"""Words of the command line into a typed command, by tyro; flat option names everywhere."""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar, get_args

import tyro

from flashmore.config import Preset, TrainConfig
from flashmore.specs import models
from flashmore.terminal import one_line

Command = TypeVar("Command")

STYLE = (
    tyro.conf.OmitArgPrefixes,  # --max-steps, never --config.max-steps
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
    given = {} if default is None else {"default": default}
    parsed: Command = _tyro(command, verb, argv, **given)
    return parsed


def parse_known(command: type[Command], verb: str, argv: Sequence[str]) -> tuple[Command, list[str]]:
    """Parse as `parse` does, and hand back the words that do not fit."""
    parsed: tuple[Command, list[str]] = _tyro(command, verb, argv, return_unknown_args=True)
    return parsed


def _tyro(command: type[Command], verb: str, argv: Sequence[str], **options: Any) -> Any:
    """Run tyro. It prints its messages itself, so it reads words that need an escape twice to print one."""
    run = partial(tyro.cli, command, prog=f"flashmore {verb}", config=STYLE, **options)
    shown = [one_line(word) for word in argv]
    if shown == [*argv]:
        return run(args=argv)
    try:
        return run(args=argv, console_outputs=False)
    except SystemExit:
        run(args=shown)
        raise


def options_in(argv: Sequence[str]) -> set[str]:
    """The options among the words, as the help spells them."""
    return {word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")}


def value_of(option: str, argv: Sequence[str]) -> str | None:
    """The value of one option before anything else is parsed: the defaults of the rest may depend on it.

    The last one counts, as it does for the parser; an option without a value has the empty one.
    """
    value = None
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == option:
            value = following
        elif word.startswith(option + "="):
            value = word.removeprefix(option + "=")
    return value


def defaults(argv: Sequence[str], preset: Preset = "names") -> TrainConfig:
    """The config of --model and --preset and nothing else; a wrong name is left for the parser to refuse.

    Args:
        argv: the words of the command line.
        preset: of a command line that names none.
    """
    model, named = value_of("--model", argv), value_of("--preset", argv)
    if model not in models():
        model = "transformer"
    return TrainConfig(model=model, preset=named if named in get_args(Preset) else preset)  # type: ignore[arg-type]
