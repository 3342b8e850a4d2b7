"""What a rewrite leaves behind: comments of removed lines, attributes that nothing reads any more."""

import ast
from collections.abc import Iterator

from flashmore.upgrade.rewrite import Rewriting
from flashmore.upgrade.text import comments


def unused(rewriting: Rewriting, changed: str) -> Iterator[str]:
    """A note for every attribute of the class that was read before the edits, and nowhere after them."""
    flow = rewriting.found.flow
    if flow.owner is None:
        return
    family = {flow.owner, *flow.owner.lineage(), *flow.module.below(flow.owner)}
    others = {each.node.name for each in flow.module.classes.values() if each not in family}
    for name in sorted(_read(flow.module.tree, others) - _read(ast.parse(changed), others)):
        holder = flow.owner.holder(name)
        made = holder.own_assignments[name] if holder is not None else []
        if made and holder is not None and holder.module is flow.module:
            yield f"`self.{name}` (line {made[0].lineno}) is no longer read"


def _read(tree: ast.Module, others: set[str]) -> set[str]:
    """The attributes that are read, but for those of `self` in other classes."""
    elsewhere = {
        each
        for top in tree.body
        if isinstance(top, ast.ClassDef) and top.name in others
        for each in ast.walk(top)
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "self"
    }
    return {
        each.attr
        for each in ast.walk(tree)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Load) and each not in elsewhere
    }


def kept_comments(rewriting: Rewriting) -> Iterator[str]:
    """A note for each span of removed lines with comments, in it or above it, that now stand alone."""
    text = rewriting.text
    for removal in () if rewriting.is_guarded else rewriting.removals():
        start, follows = removal.start, text.source[removal.end :].partition("\n")[0].strip()
        if not follows or follows.startswith("#"):
            start = rewriting.above(start)
        if comments(text.source[start : removal.end]):
            first, last = text.offset_line(start) + 1, text.offset_line(removal.end - 1) + 1
            lines = f"line {first}" if first == last else f"lines {first}-{last}"
            yield f"the comments in {lines} are kept, and may no longer be right"
