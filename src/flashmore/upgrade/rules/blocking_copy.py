"""FM103 blocking-copy: batches in pinned memory are copied to the GPU, and the CPU waits for each copy."""

import ast
from collections.abc import Iterator

from flashmore.upgrade.budget import walk
from flashmore.upgrade.rules.advice import Said, saying
from flashmore.upgrade.rules.rule import Parsed, Rule
from flashmore.upgrade.source.called import calls
from flashmore.upgrade.source.loops import training_loops
from flashmore.upgrade.source.scopes import last
from flashmore.upgrade.text import shown

_AROUND = ("enumerate", "tqdm", "iter", "track")


def search(parsed: Parsed) -> Iterator[Said]:
    """The first copy of a batch of each training loop over a loader that pins memory."""
    pinned = _pinned(parsed)
    for place in training_loops(parsed.module) if pinned else ():
        if not isinstance(place.loop, ast.For) or _loader(place.loop.iter) not in pinned:
            continue
        names = {node.id for node in walk(place.loop.target) if isinstance(node, ast.Name)}
        for statement in place.loop.body:  # `x, y = batch`, `[each.to(device) for each in batch]`
            for node in walk(statement):
                match node:
                    case ast.Assign(targets=[target], value=ast.Name(id=name)) if name in names:
                        names |= {each.id for each in walk(target) if isinstance(each, ast.Name)}
                    case ast.comprehension(target=ast.Name(id=own), iter=ast.Name(id=name)) if name in names:
                        names.add(own)
        found = (node for each in place.loop.body for node in walk(each) if _blocks(node, names))
        first = min(found, key=lambda node: getattr(node, "lineno", 0), default=None)
        if isinstance(first, ast.Call):
            yield Said(
                first,
                place.symbol,
                f"`{shown(first)}` waits for the copy, although the batch lies in pinned memory",
                "`non_blocking=True` lets the CPU go on meanwhile",
            )


def _pinned(parsed: Parsed) -> set[str]:
    """The names of loaders with pin_memory=True."""
    made = {
        id(called.node)
        for called in calls(parsed.module)
        if called.full.endswith(".DataLoader")
        and any(
            each.arg == "pin_memory" and isinstance(each.value, ast.Constant) and each.value.value is True
            for each in called.node.keywords
        )
    }
    return {
        target.id
        for node in walk(parsed.module.tree)
        if isinstance(node, ast.Assign) and id(node.value) in made
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _loader(node: ast.expr) -> str | None:
    """The name of what a loop runs over: `enumerate(tqdm(loader))`."""
    while isinstance(node, ast.Call) and node.args:
        if last(node.func) not in _AROUND:
            return None
        node = node.args[0]
    return node.id if isinstance(node, ast.Name) else None


def _blocks(node: ast.AST, names: set[str]) -> bool:
    """`x.to(device)` and `x.cuda()` without non_blocking."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="to" | "cuda" as method)) if (
            name in names
        ):
            given = {each.arg for each in node.keywords}
            if "non_blocking" in given or None in given or len(node.args) > 1:
                return False
            text = ast.unparse(node.args[0]) if node.args else "device" if "device" in given else ""
            return method == "cuda" or "device" in text or "cuda" in text
    return False


RULE = Rule(
    "FM103",
    "blocking-copy",
    "Copy pinned batches to the GPU with non_blocking=True.",
    "https://docs.pytorch.org/docs/stable/notes/cuda.html#use-pinned-memory-buffers",
    r"pin_memory",
    saying(search),
)
