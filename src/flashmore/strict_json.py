"""JSON from files that others may have prepared: finite numbers of 64 bits, and few levels."""

import json
import math

DEEPEST = 16
"""Objects and lists inside one another; the deepest document that flashmore writes, a record, has nine."""


def loads(data: bytes) -> object:
    """Read a JSON document.

    Raises:
        ValueError: no whole document; NaN, an infinity or a number that needs more than 64 bits; or more than
            `DEEPEST` levels, which functions that call themselves could not walk through.
    """
    try:
        value: object = json.loads(data, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} levels") from None
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError(f"more than {DEEPEST} levels")
    return value


def _whole(text: str) -> int:
    value = int(text) if len(text) <= 20 else 2**63
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{text[:20]}… is no number of 64 bits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value
