"""JSON from files that others may have prepared: finite numbers of 64 bits, and few levels."""

import json
import math

DEEPEST = 16
"""Objects and lists inside one another; the deepest document that flashmore writes, a record, has nine."""
MOST_VALUES = 6_000_000


def loads(data: bytes) -> object:
    """Read a JSON document.

    Raises:
        ValueError: no whole document; NaN, an infinity or a number that needs more than 64 bits; half of a
            surrogate pair; more than `DEEPEST` levels, which functions that call themselves could not walk
            through; or more than `MOST_VALUES` strings, lists and objects, each of which takes many times
            its bytes in memory.
    """
    if data.count(b'"') // 2 + data.count(b"[") + data.count(b"{") > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values")
    try:
        value: object = json.loads(data, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} levels") from None
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    if level:
        raise ValueError(f"more than {DEEPEST} levels")
    if b"\\u" in data:  # half of a surrogate pair is no character, and cannot be written again
        json.dumps(value, ensure_ascii=False).encode()
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
