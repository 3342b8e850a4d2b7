"""Run what the user named: the model that a function returns, or a script with its own arguments."""

import importlib
import inspect
import os
import runpy
import sys
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

VALID = "a torch.nn.Module and its inputs (a tensor, or a tuple or dict of arguments)"

_HERE = str(Path(__file__).resolve().parents[2])
_OTHERS = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")})
"""Where code lies that is not the user's."""


class UserCodeFailed(Exception):
    """The user's own code raised, or returned the wrong thing; the message says what and where."""


@dataclass(frozen=True)
class Example:
    """A model and what it is called with."""

    model: nn.Module
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]

    def __call__(self) -> Any:
        """Run the model once."""
        return self.model(*self.arguments, **self.named)


def load_example(name: str) -> Example:
    """Import a module from the working directory and call its function.

    Args:
        name: `module:function`; the function takes nothing and returns a model and its inputs.

    Raises:
        UserCodeFailed: there is no such function, it raises, or it returns something else.
    """
    module_name, _, function_name = name.partition(":")
    _search_modules_in(Path.cwd())
    try:
        function: Any = getattr(importlib.import_module(module_name), function_name, None)
        if not _takes_nothing(function):
            found = f"{_what(function)} of this name" if function is not None else "no such name"
            raise UserCodeFailed(
                f"{name}: the module has {found}; expected a function without arguments that returns {VALID}"
            )
        returned = function()
    except UserCodeFailed:
        raise
    except BaseException as error:  # noqa: BLE001 - someone else's code may raise anything, SystemExit too
        raise UserCodeFailed(told(error)) from None
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise UserCodeFailed(f"{name} returned {_what(returned)}; expected {VALID}")
    model, inputs = returned
    if not isinstance(model, nn.Module):
        raise UserCodeFailed(f"{name} returned {_what(model)} as the model; expected {VALID}")
    if isinstance(inputs, Tensor):
        return Example(model, (inputs,), {})
    if isinstance(inputs, Mapping):
        return Example(model, (), dict(inputs))
    if isinstance(inputs, (tuple, list)):
        return Example(model, tuple(inputs), {})
    raise UserCodeFailed(f"{name} returned {_what(inputs)} as the inputs; expected {VALID}")


def run_script(words: Sequence[str]) -> None:
    """Run a script as `python WORDS` would: `train.py --steps 3`, or `-m package.train --steps 3`.

    Raises:
        UserCodeFailed: it raised, or ended with an exit code that is not 0.
    """
    try:
        if words[0] == "-m":
            sys.argv = list(words[1:])
            _search_modules_in(Path.cwd())
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            _search_modules_in(Path(words[0]).resolve().parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise UserCodeFailed(f"the script ended with exit code {stop.code}") from None
    except BaseException as error:  # noqa: BLE001 - someone else's code may raise anything
        raise UserCodeFailed(told(error)) from None


def _search_modules_in(folder: Path) -> None:
    """From here on modules are found as in the user's own Python: there first, and then in `PYTHONPATH`.

    This process started without either, so that what we import ourselves is what is installed.
    """
    given = os.environ.get("PYTHONPATH")
    more = [str(Path.cwd() / each) for each in given.split(os.pathsep)] if given else []
    sys.path[:0] = [str(folder), *more]


def _takes_nothing(function: Any) -> bool:
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # a builtin does not tell
        return True
    return True


def told(error: BaseException) -> str:
    """Type, message and the last line of the user's that an error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((_HERE, *_OTHERS, "<"))]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    try:
        message = (str(error).splitlines() or ["no message"])[0][:300]
    except Exception:  # noqa: BLE001 - a message of the user's that raises is none
        message = "no message"
    return f"{type(error).__name__}: {message}{where}"


def _what(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values"
    return f"a {type(value).__name__}" if value is not None else "nothing"
