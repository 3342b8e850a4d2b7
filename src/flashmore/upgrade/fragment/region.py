"""The lines of an attention in the edited file, and that nothing else has changed there."""

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flashmore.upgrade.axes import Refuse
from flashmore.upgrade.budget import walk
from flashmore.upgrade.rewrite import Rewriting
from flashmore.upgrade.source.nodes import blocks_of
from flashmore.upgrade.source.scopes import Function, copied, is_note
from flashmore.upgrade.text import Text

_IMPORT = re.compile(r"\s*(import|from)\b|\s*$")


@dataclass(frozen=True)
class Region:
    """What stands in the edited file where the attention stood.

    Args:
        statements: those that run where the guards hold.
        out: what stands in the last of them where the product with the values stood.
        of_dtypes: what a guard asks about dtypes, beside the conditions of the attention.
    """

    statements: list[ast.stmt]
    out: ast.expr
    of_dtypes: ast.expr | None


def region(rewriting: Rewriting, changed: str) -> Region:
    """Find the lines of an attention after the edits.

    Args:
        rewriting: the rewriting.
        changed: the source with its edits made, a guard included.

    Raises:
        Refuse: anything else has changed, or a guard does not keep the old lines.
    """
    block, first, last = rewriting.region()
    before, final = block[first : last + 1], rewriting.found.final.node
    assert isinstance(final, ast.expr)
    function = rewriting.same_function(ast.parse(changed))
    whole = _counterpart_block(rewriting, function, block)
    spanned = whole[first : len(whole) - (len(block) - last - 1)]
    _check_outside(rewriting, changed, function, [*before, *spanned])
    statements, of_dtypes = _without_guard(rewriting, spanned, before)
    out = _counterpart(final, before[-1], statements[-1])
    old = _shape(before[-1], {id(final): "out"}, rewriting.taken)
    if old != _shape(statements[-1], {id(out): "out"}):
        raise Refuse("more would change in the last line than the product")
    return Region(statements, out, of_dtypes)


def _counterpart_block(rewriting: Rewriting, function: Function, block: list[ast.stmt]) -> list[ast.stmt]:
    """A block after the edits, which change no statement that it stands in."""
    parent: ast.AST = rewriting.blocks.places[block[0]].parent
    other: ast.AST = function
    if isinstance(parent, ast.stmt) and parent is not rewriting.found.flow.function:
        place = rewriting.blocks.places[parent]
        other = _counterpart_block(rewriting, function, place.block)[place.index]
    which = next(index for index, each in enumerate(blocks_of(parent)) if each is block)
    return [*blocks_of(other)][which]


def _check_outside(
    rewriting: Rewriting, changed: str, function: Function, inside: Sequence[ast.stmt]
) -> None:
    """Nothing changes but the region, imports above, `view` to `reshape` below, and what `del` names."""
    old = rewriting.found.flow.function

    def left(node: ast.AST) -> ast.AST | None:
        kept = rewriting.undeleted.get(node) if isinstance(node, ast.Delete) else None
        return None if kept is None else ast.Delete(kept)

    marks = dict.fromkeys(map(id, inside), "")
    lines, after = rewriting.text.lines, Text(changed).lines
    above, kept = (
        [each for each in part if not _IMPORT.match(each)]
        for part in (after[: function.lineno - 1], lines[: old.lineno - 1])
    )
    below = after[function.end_lineno :] == lines[old.end_lineno :]
    if above != kept or not below or _shape(old, marks, left) != _shape(function, marks):
        raise Refuse("more would change than the lines of the attention")


def _without_guard(
    rewriting: Rewriting, spanned: list[ast.stmt], before: list[ast.stmt]
) -> tuple[list[ast.stmt], ast.expr | None]:
    """The lines that run where the guards hold, and what else a guard asks."""
    if not rewriting.is_guarded:
        return spanned, None
    match spanned:
        case [ast.If(test=test, body=body, orelse=orelse)] if _without_notes(orelse) == _without_notes(
            before
        ):
            return body, _of_dtypes(rewriting, test)
    raise Refuse("the guard does not keep the old lines")


def _without_notes(statements: list[ast.stmt]) -> list[str]:
    """The syntax of statements without texts that nobody reads, which a guard indents."""
    blank = ast.Pass()
    return [ast.dump(copied(each, lambda node: blank if is_note(node) else None)) for each in statements]


def _of_dtypes(rewriting: Rewriting, test: ast.expr) -> ast.expr | None:
    """What a guard's test asks beside the conditions, which hold in a test."""
    texts = [rewriting.words.condition(each) for each in rewriting.guards]
    texts += [*rewriting.of_ranks(), *(text for _, text in rewriting.emission.asked)]
    asked = {ast.dump(each) for text in texts for each in _parts(parsed(text))}
    left = [each for each in _parts(test) if ast.dump(each) not in asked]
    return ast.BoolOp(ast.And(), left) if len(left) > 1 else left[0] if left else None


def _counterpart(node: ast.AST, old: ast.AST, new: ast.AST) -> ast.expr:
    """What stands in a changed statement where a node stood."""
    while old is not node:
        pairs = zip(ast.iter_child_nodes(old), ast.iter_child_nodes(new), strict=False)
        old, new = next((a, b) for a, b in pairs if any(each is node for each in walk(a)))
    assert isinstance(new, ast.expr)
    return new


def parsed(text: str) -> ast.expr:
    """An expression from its text."""
    return ast.parse(f"({text})", mode="eval").body


def _parts(test: ast.expr) -> list[ast.expr]:
    return test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]


def _shape(
    node: ast.AST, marks: dict[int, str], taken: Callable[[ast.AST], ast.AST | None] = lambda _: None
) -> list[object]:
    """The syntax below a node, with marks in the place of some; `view` counts as `reshape`.

    What `taken` gives for a node takes its place.
    """
    found: list[object] = [type(node).__name__]
    for name, value in ast.iter_fields(node):
        for each in value if isinstance(value, list) else [value]:
            each = (taken(each) or each) if isinstance(each, ast.AST) else each
            if id(each) in marks:
                found += [marks[id(each)]] if marks[id(each)] else []
            elif isinstance(each, ast.AST):
                found.append(_shape(each, marks, taken))
            else:
                found.append("reshape" if name == "attr" and each == "view" else each)
        found.append(name)
    return found
