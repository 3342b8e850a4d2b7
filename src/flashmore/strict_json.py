"""JSON from untrusted files, with limits on numbers, nesting and size."""

import json
from pathlib import Path

from flashmore.errors import DataError
from flashmore.files import open_input

DEEPEST = 16
"""Deepest nesting of objects and lists; flashmore's deepest document, a record, has nine levels."""
MOST_VALUES = 6_000_000
LARGEST_FLOAT = 1e100
"""Above the range of float32; sums and products of a few such numbers stay finite."""


def read(
    path: Path,
    wanted: str,
    valid: str,
    most_bytes: int,
    most_values: int = MOST_VALUES,
    *,
    again: bool = True,
) -> object:
    """Read a JSON document from a file that the user names; a pipe only without `again`, as `open_input`.

    Raises:
        DataError: of what was wanted: it cannot be read, is larger, or is not such a document.
    """
    with open_input(path, wanted, valid, again=again) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise DataError(wanted, f"more than {most_bytes:,} bytes", valid)
    try:
        return loads(data, most_values)
    except ValueError as error:
        raise DataError(wanted, f"invalid or incomplete JSON ({error})", valid) from error


def count_values(data: bytes) -> int:
    """Upper bound of the number of values in a JSON document, which take many times its bytes in memory."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def loads(data: bytes, most_values: int = MOST_VALUES) -> object:
    """Read a JSON document.

    Raises:
        ValueError: not UTF-8; incomplete; NaN, a number above `LARGEST_FLOAT` or one that needs more than 64
            bits; a lone surrogate; more than `DEEPEST` levels, which recursive functions could not handle; or
            more than `most_values` by `count_values`.
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
        raise ValueError(f"{text[:20]}… is not a 64-bit number")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) <= LARGEST_FLOAT:
        raise ValueError(f"{text[:20]} is not a number of at most {LARGEST_FLOAT:g}")
    return value
