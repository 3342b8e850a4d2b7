"""What a rewrite leaves behind that nothing reads any more, such as the buffer of a causal mask."""

import ast
from collections.abc import Iterator

from flashmore.upgrade.rewrite import Rewriting


def unused(rewriting: Rewriting, changed: str) -> Iterator[str]:
    """A note for every attribute of the class that was read before the edits, and nowhere after them."""
    flow = rewriting.found.flow
    if flow.owner is None:
        return
    for name in sorted(_read(flow.module.tree) - _read(ast.parse(changed))):
        made = flow.owner.assignments(name)
        if made:
            yield f"`self.{name}` (line {made[0].lineno}) is no longer read"


def _read(tree: ast.Module) -> set[str]:
    return {
        each.attr
        for each in ast.walk(tree)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Load)
    }
