"""Command line options: parsed with tyro; refused without an effect, or for a path that cannot be written."""

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import is_dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from flashmore.config import Preset, TrainConfig, ineffective, without_effect
from flashmore.errors import ConfigError, StorageError, UsageError, option_of
from flashmore.specs import models
from flashmore.terminal import one_line

Command = TypeVar("Command")

STYLE = (
    tyro.conf.OmitArgPrefixes,  # --max-steps, never --config.max-steps
    tyro.conf.FlagCreatePairsOff,  # --json, without --no-json
    tyro.conf.DisallowNone,  # --file PATH, not {None}|PATH
    tyro.conf.OmitSubcommandPrefixes,
)
HELP = ConstructorRegistry()
"""How an option is shown in the help."""
_UNTOLD = {"None": "", "": "", "False": "", "True": "(on by default; this flag disables it)"}
_HINT = tyro.conf.arg(help_behavior_hint=lambda value: _UNTOLD.get(value, f"(default: {value})"))
_inner = ContextVar("inner", default=False)
"""Whether tyro's own rule is asked."""
LONGEST_ENDING = 22
"""Characters added to a file name while the file is being written."""


def command(verb: str) -> Callable[[Callable[..., int]], Callable[[Sequence[str]], int]]:
    """A decorator that makes a function the command `verb`, to be called with the arguments after it.

    Its parameters become arguments and options, and its docstring becomes the help.
    """

    def decorate(function: Callable[..., int]) -> Callable[[Sequence[str]], int]:
        def parsed(*values: Any, **options: Any) -> Callable[[], int]:
            return partial(function, *values, **options)  # it runs outside of the parser

        types = get_type_hints(function, include_extras=True)
        parsed.__annotations__ = {name: _with_hint(each) for name, each in types.items()}
        parsed.__signature__ = signature(function)  # type: ignore[attr-defined]
        parsed.__doc__ = function.__doc__
        return lambda argv: int(_tyro(parsed, verb, argv)())

    return decorate


def parse(command: type[Command], verb: str, argv: Sequence[str], default: Command | None = None) -> Command:
    """Parse the arguments after a verb into a dataclass, whose docstring and fields' docstrings are the help.

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


def _tyro(command: Callable[..., Any], verb: str, argv: Sequence[str], **options: Any) -> Any:
    """Run tyro. It prints its messages itself, so arguments that need escaping are parsed twice."""
    run = partial(tyro.cli, command, prog=f"flashmore {verb}", config=STYLE, **options)
    shown = [one_line(word) for word in argv]
    with HELP:
        if shown == [*argv]:
            return run(args=argv)
        try:
            return run(args=argv, console_outputs=False)
        except SystemExit:
            run(args=shown)
            raise


@HELP.struct_rule
def _dataclass(info: StructTypeInfo) -> Any:
    """As tyro reads a dataclass, but with `_with_hint`, and without the line breaks of its docstrings."""
    if not is_dataclass(info.type) or _inner.get():
        return None
    token = _inner.set(True)
    try:
        spec = ConstructorRegistry.get_struct_spec(info)
    finally:
        _inner.reset(token)
    if not isinstance(spec, StructConstructorSpec):
        return spec

    def told(field: StructFieldSpec) -> str | None:
        text = field.helptext() if callable(field.helptext) else field.helptext
        return None if text is None else re.sub(r"(?<!\n)\n(?!\n)", " ", text)

    fields: Any = [
        replace(each, type=_with_hint(each.type), helptext=partial(told, each)) for each in spec.fields
    ]
    return replace(spec, fields=fields)


def _with_hint(option: Any) -> Any:
    """The type of an option, whose default is not told where it is to have no value or not to be set."""
    plain, *others = get_args(option) if get_origin(option) is Annotated else (option,)
    return Annotated[plain, _HINT, *others]


def options_in(argv: Sequence[str]) -> set[str]:
    """The options among the arguments, as spelled in the help."""
    return {word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")}


def value_of(option: str, argv: Sequence[str]) -> str | None:
    """The value of one option before parsing: the defaults of the others may depend on it.

    The last occurrence counts, as in the parser; an option without a value has an empty value.
    """
    value = None
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        name, given, joined = word.partition("=")
        if name.replace("_", "-") == option:
            value = joined if given else following
    return value


def defaults(argv: Sequence[str], preset: Preset = "names") -> TrainConfig:
    """The config for --model and --preset only; invalid names are left for the parser to refuse."""
    model, named = value_of("--model", argv), value_of("--preset", argv)
    if model is None or model not in models():
        model = "transformer"
    chosen: Any = named if named in get_args(Preset) else preset
    try:
        return TrainConfig(model=model, preset=chosen)
    except ConfigError:  # a preset for other models, which must not keep the help from being shown
        if not {"-h", "--help"} & set(argv):
            raise
        return TrainConfig(model=model, preset=preset)


def refuse_ineffective(config: TrainConfig, argv: Sequence[str], unused: Sequence[str] = ()) -> None:
    """Refuse given options that have no effect on this config, or that are `unused` by this command."""
    given = options_in(argv)
    for option in unused:
        if option in given:
            raise ConfigError("options that affect the measurement", option, f"omit {option}")
    for name in ("teacher", "speedups", "log_to"):
        if (option := option_of(name)) in given and not getattr(config, name):
            raise ConfigError(f"a value of {option}", "none", f"{option} VALUE …, or omit {option}")
    for name, needed, present in ineffective(config):
        if option_of(name) in given:
            raise without_effect(name, needed, present)


def require_writable(
    option: str, path: Path | None, *, folder: bool = False, endings: Sequence[str] = ()
) -> None:
    """Refuse an option's path that cannot be written, though it and its parent folders may be new.

    The check leaves nothing behind.

    Raises:
        UsageError: the name has none of the endings.
        StorageError: why it cannot be written.
    """
    if path is not None and endings and path.suffix.lower() not in endings:
        raise UsageError(f"a file for {option}", str(path), f"a name that ends in {' or '.join(endings)}")
    why = None if path is None else _why_not(path.absolute(), folder=folder)
    if why is not None:
        wanted = f"a writable {'folder' if folder else 'file'} for {option}"
        raise StorageError(wanted, f"{path}: {why}", f"another {option}")


def _why_not(path: Path, *, folder: bool) -> str | None:
    try:
        if not folder and path.is_dir():
            return "it is a folder"
        there = path if folder and path.is_dir() else path.parent
        missing = [path.name]
        while not os.path.lexists(there):
            missing.append(there.name)
            there = there.parent
        if not there.is_dir():
            return f"{there} is not a folder"
        with tempfile.TemporaryFile(dir=there):  # permissions do not reveal a read-only disk
            pass
        longest = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        if max(len(os.fsencode(name)) for name in missing) + LONGEST_ENDING > longest:
            return "its name is too long"
    except OSError as error:
        return error.strerror or str(error)
    return None
