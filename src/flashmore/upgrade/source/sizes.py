"""Sizes as texts: equal texts for equal sizes."""

import re
from collections.abc import Sequence

from flashmore.upgrade.source.graph import Value, number

Dims = list[str]


def integers(values: Sequence[Value]) -> list[int] | None:
    """Whole numbers, given one by one or as one tuple."""
    if len(values) == 1 and values[0].op == "tuple":
        values = values[0].args
    found = [number(each) for each in values]
    return (
        [each for each in found if isinstance(each, int)] if all(isinstance(e, int) for e in found) else None
    )


def pattern_axes(side: str) -> list[str]:
    """The axes of one side of an einops pattern: `"b (h d)"` has two."""
    return re.findall(r"\([^)]*\)|\.\.\.|[A-Za-z_0-9]+", side)


def axis_size(text: str, names: dict[str, str], own: str) -> str:
    """The size of one axis of an einops pattern."""
    if text.startswith("("):
        return product([axis_size(each, names, own) for each in text[1:-1].split()])
    return text if text == "1" else names.get(text, f"{own}:{text}")


def product(sizes: Sequence[str]) -> str:
    """The text of a product of sizes."""
    parts = sorted(part for size in sizes for part in size.split("*") if part != "1")
    return "*".join(parts) or "1"


def broadcast(shapes: Sequence[Dims | None], own: str) -> Dims | None:
    """The dimensions of what is computed from several tensors; a 1 of an unknown other one may be more.

    The first one may be unknown beside a bias of four dimensions: of fewer, it may have more.
    """
    known = sorted((each[::-1] for each in shapes if each is not None), key=len, reverse=True)
    if not known or (shapes[0] is None and len(known[0]) < 4):
        return None
    result = []
    for index in range(len(known[0])):
        sizes = [each[index] for each in known if index < len(each)]
        unknown = "1" if len(known) == len(shapes) else f"{own}#-{index}"
        result.append(next((each for each in sizes if each != "1"), unknown))
    return result[::-1]


def quotient(whole: str, part: str) -> str:
    """The text of a size divided by another."""
    parts = whole.split("*")
    if part in parts and len(parts) > 1:
        parts.remove(part)
        return "*".join(parts)
    return f"({whole}//{part})"
