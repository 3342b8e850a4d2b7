"""FM102 item-in-loop: the loss is read in every step, so that the CPU waits for the GPU each time."""

import ast
from collections.abc import Iterator

from flashmore.upgrade.rules.advice import Said, runs_on_gpu, saying
from flashmore.upgrade.rules.rule import Parsed, Rule
from flashmore.upgrade.source.loops import losses, training_loops, unconditional
from flashmore.upgrade.text import shown

_METHODS = ("item", "cpu", "tolist", "numpy")
_FUNCTIONS = ("float", "print")
_SAME = ("detach", "data", "mean", "sum")


def search(parsed: Parsed) -> Iterator[Said]:
    """The first such line of each training loop."""
    if not runs_on_gpu(parsed):
        return
    for place in training_loops(parsed.module):
        names = losses(place.loop)
        found = (
            node for node in unconditional(place.loop) if isinstance(node, ast.Call) and _reads(node, names)
        )
        first = min(found, key=lambda node: node.lineno, default=None)
        if first is not None:
            yield Said(
                first,
                place.symbol,
                f"`{shown(first)}` in every step waits until the GPU has finished it",
                "sum up `loss.detach()`, and read the sum where it is logged, every so many steps",
            )


def _reads(call: ast.Call, names: set[str]) -> bool:
    match call:
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in _METHODS:
            return _root(value) in names
        case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
            return any(isinstance(each, ast.Name) and each.id in names for each in _shown(args))
    return False


def _root(node: ast.expr) -> str | None:
    """The name behind `loss.detach()`."""
    while True:
        match node:
            case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in _SAME:
                node = inner
            case ast.Attribute(value=inner, attr="data"):
                node = inner
            case _:
                return node.id if isinstance(node, ast.Name) else None


def _shown(args: list[ast.expr]) -> Iterator[ast.expr]:
    """What is printed, in f-strings too."""
    for each in args:
        yield each
        if isinstance(each, ast.JoinedStr):
            yield from (part.value for part in each.values if isinstance(part, ast.FormattedValue))


RULE = Rule(
    "FM102",
    "item-in-loop",
    "Read the loss where it is logged, not in every step.",
    "https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html#avoid-unnecessary-cpu-gpu-synchronization",
    r"\.backward\(",
    saying(search),
)
