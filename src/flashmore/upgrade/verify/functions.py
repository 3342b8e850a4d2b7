"""A fragment's two functions, compiled after they were read, with the names that they may use."""

import ast
import importlib
import math
from collections.abc import Mapping
from types import CodeType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flashmore.upgrade.isolated import installed
from flashmore.upgrade.site import Fragment
from flashmore.upgrade.verify.allowed import AT_HAND, OF_EINOPS, NotAllowed, compiled
from flashmore.upgrade.verify.case import Lines
from flashmore.upgrade.verify.steps import trained


def functions_of(fragment: Fragment) -> tuple[Lines, Lines]:
    """Both functions of a fragment, `old` and `new`, compiled after they were read.

    Raises:
        NotAllowed: it holds something that a test does not run, or needs a package that is not here.
    """
    old, new = compiled(fragment)
    space = _names(fragment)
    return _function(old, "old", space), _function(new, "new", space)


def _function(code: CodeType, name: str, space: Mapping[str, Any]) -> Lines:
    defined = dict(space)
    exec(code, defined)  # `compiled` has read it
    function: Lines = defined[name]
    return function


def _names(fragment: Fragment) -> dict[str, Any]:
    """The modules that the lines may use, einops only where they do."""
    builtins = importlib.import_module("builtins")
    space: dict[str, Any] = {"__builtins__": {word: getattr(builtins, word) for word in AT_HAND}}
    space |= {"torch": torch, "F": F, "nn": nn, "math": math, "np": np, "trained": trained}
    nodes = (node for source in (fragment.old, fragment.new) for node in ast.walk(ast.parse(source)))
    if {node.id for node in nodes if isinstance(node, ast.Name)} & {"einops", *OF_EINOPS}:
        try:
            einops = installed("einops")
        except ImportError:
            raise NotAllowed(
                "needs einops, which is not installed here: python -m pip install einops"
            ) from None
        space |= {"einops": einops} | {word: getattr(einops, word) for word in OF_EINOPS}
    return space
