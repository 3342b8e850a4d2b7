"""Where the cells' sources stand in a notebook's JSON; what else counts of it, and nothing more in memory.

The standard decoder reads every value, so that what Jupyter cannot open is not taken for a notebook. Jupyter
itself uses this decoder; stricter ones refuse the NaN in many outputs.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode
_Read = Callable[[str, int], tuple[Any, int]]


def read_spans(text: str) -> dict[str, Any]:
    """What counts of a notebook: its cells with their types and the spans of their sources.

    Raises:
        json.JSONDecodeError: it is not valid JSON, no object, or repeats a key.
        RecursionError: it is nested too deeply.
    """
    read_cell = partial(_object, read={"cell_type": _decode, "source": _span})
    read: dict[str, _Read] = {
        "cells": partial(_array, read=read_cell),
        "metadata": _decode,
        "nbformat": _decode,
        "worksheets": _skip,
    }
    top, end = _object(text, _space(text, 0), read)
    if _space(text, end) < len(text):
        raise json.JSONDecodeError("Extra data", text, _space(text, end))
    return top


def _object(text: str, at: int, read: Mapping[str, _Read]) -> tuple[dict[str, Any], int]:
    """The members of an object that are asked for, and where it ends; keys are not repeated in it."""
    seen: set[str] = set()
    found: dict[str, Any] = {}
    at = _space(text, _expect(text, at, "{"))
    if text.startswith("}", at):
        return found, at + 1
    while True:
        _expect(text, at, '"')
        key, end = _decode(text, at)
        if key in seen:
            raise json.JSONDecodeError(f"Repeated key {key!r}", text, at)
        seen.add(key)
        at = _space(text, _expect(text, _space(text, end), ":"))
        value, at = read.get(key, _skip)(text, at)
        if key in read:
            found[key] = value
        at = _space(text, at)
        if text.startswith("}", at):
            return found, at + 1
        at = _space(text, _expect(text, at, ","))


def _array(text: str, at: int, read: _Read) -> tuple[list[Any], int]:
    """The elements of an array, and where it ends."""
    found: list[Any] = []
    at = _space(text, _expect(text, at, "["))
    if text.startswith("]", at):
        return found, at + 1
    while True:
        value, at = read(text, at)
        found.append(value)
        at = _space(text, at)
        if text.startswith("]", at):
            return found, at + 1
        at = _space(text, _expect(text, at, ","))


def _skip(text: str, at: int) -> tuple[None, int]:
    return None, _decode(text, at)[1]


def _span(text: str, at: int) -> tuple[tuple[int, int], int]:
    end = _decode(text, at)[1]
    return (at, end), end


def _expect(text: str, at: int, character: str) -> int:
    if not text.startswith(character, at):
        raise json.JSONDecodeError(f"Expecting {character!r}", text, at)
    return at + 1


def _space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()
