"""JSON from files that others may have prepared: sensible numbers, few levels, not too many values."""

import json

DEEPEST = 16
"""Objects and lists inside one another; the deepest document that flashmore writes, a record, has nine."""
MOST_VALUES = 6_000_000
LARGEST_FLOAT = 1e100
"""Beyond all of float32, and sums and products of a few stay finite."""


def count_values(data: bytes) -> int:
    """A bound on the values of a JSON document, each of which takes many times its bytes in memory."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def loads(data: bytes, most_values: int = MOST_VALUES) -> object:
    """Read a JSON document.

    Raises:
        ValueError: no UTF-8; no whole document; NaN, a number above `LARGEST_FLOAT` or one that needs more
            than 64 bits; half of a surrogate pair; more than `DEEPEST` levels, which functions that call
            themselves could not walk through; or more than `most_values` by `count_values`.
    """
    if count_values(data) > most_values:
        raise ValueError(f"more than {most_values:,} values")
    try:
        # Of bytes, json.loads would take UTF-16 and surrogates that were written as if they were characters.
        text = data.decode()
        value: object = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
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
    if not abs(value) <= LARGEST_FLOAT:
        raise ValueError(f"{text[:20]} is no number up to {LARGEST_FLOAT:g}")
    return value
