"""Parses command line arguments into a typed command with tyro; all option names are flat."""

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
    """Parse the arguments after a verb.

    Args:
        command: a dataclass; its docstring and its fields' docstrings are the help.
        verb: the preceding words, such as `train`.
        argv: the arguments to parse.
        default: default values; None means the dataclass's own.

    Raises:
        SystemExit: 0 after --help, 2 for invalid arguments; the output has been printed.
    """
    given = {} if default is None else {"default": default}
    parsed: Command = _tyro(command, verb, argv, **given)
    return parsed


def parse_known(command: type[Command], verb: str, argv: Sequence[str]) -> tuple[Command, list[str]]:
    """Parse like `parse`, and return unknown arguments."""
    parsed: tuple[Command, list[str]] = _tyro(command, verb, argv, return_unknown_args=True)
    return parsed


def _tyro(command: type[Command], verb: str, argv: Sequence[str], **options: Any) -> Any:
    """Run tyro. It prints its messages itself, so arguments that need escaping are parsed twice."""
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
    """The options among the arguments, as spelled in the help."""
    return {word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")}


def value_of(option: str, argv: Sequence[str]) -> str | None:
    """The value of one option before parsing: the defaults of the others may depend on it.

    The last occurrence counts, as in the parser; an option without a value has an empty value.
    """
    value = None
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == option:
            value = following
        elif word.startswith(option + "="):
            value = word.removeprefix(option + "=")
    return value


def defaults(argv: Sequence[str], preset: Preset = "names") -> TrainConfig:
    """The config for --model and --preset only; invalid names are left for the parser to refuse.

    Args:
        argv: the command line arguments.
        preset: the default preset.
    """
    model, named = value_of("--model", argv), value_of("--preset", argv)
    if model not in models():
        model = "transformer"
    return TrainConfig(model=model, preset=named if named in get_args(Preset) else preset)  # type: ignore[arg-type]
