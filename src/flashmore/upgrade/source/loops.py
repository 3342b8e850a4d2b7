"""The training loops of a file: the innermost loops with both a backward pass and a step of an optimizer."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from flashmore.upgrade.budget import step
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import MODULE, Function, own_nodes

Loop = ast.For | ast.While | ast.AsyncFor


@dataclass(frozen=True)
class Place:
    """A loop, and the function or the class that it stands in."""

    loop: Loop
    symbol: str


def loops(module: Module) -> Iterator[Place]:
    """Every loop of a file, the outer ones first."""
    yield from _inside(module.tree, MODULE)


def training_loops(module: Module) -> list[Place]:
    """Those that train."""
    found = [each for each in loops(module) if _trains(each.loop)]
    return [
        each
        for each in found
        if not any(other.loop is not each.loop and other.loop in set(ast.walk(each.loop)) for other in found)
    ]


def losses(loop: Loop) -> set[str]:
    """The names whose `backward()` is called: `loss.backward()`, `scaler.scale(loss).backward()`."""
    found: set[str] = set()
    for call in _calls(loop, "backward"):
        assert isinstance(call.func, ast.Attribute)
        for part in (call.func.value, *call.args):
            if isinstance(part, ast.Call):
                part = part.args[0] if part.args else part.func
            if isinstance(part, ast.Name):
                found.add(part.id)
    return found


def unconditional(loop: Loop) -> Iterator[ast.AST]:
    """What every iteration runs: not the branches of `if`, nor what is only defined there."""
    ahead: list[ast.AST] = list(loop.body)
    while ahead:
        step()
        node = ahead.pop(0)
        if isinstance(node, (ast.If, ast.IfExp, ast.Try, ast.Match, Function, ast.Lambda, ast.ClassDef)):
            continue
        yield node
        ahead += ast.iter_child_nodes(node)


def _inside(node: ast.AST, symbol: str) -> Iterator[Place]:
    step()
    if isinstance(node, Function | ast.ClassDef):
        symbol = node.name if symbol == MODULE else f"{symbol}.{node.name}"
    elif isinstance(node, Loop):
        yield Place(node, symbol)
    for child in ast.iter_child_nodes(node):
        yield from _inside(child, symbol)


def _trains(loop: Loop) -> bool:
    return any(_calls(loop, "backward")) and any(_calls(loop, "step"))


def _calls(loop: Loop, method: str) -> Iterator[ast.Call]:
    for node in own_nodes(loop):
        step()
        match node:
            case ast.Call(func=ast.Attribute(attr=name)) if name == method:
                yield node
