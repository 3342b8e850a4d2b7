"""Wrong rewrites, made from right ones by a program: the checks refuse them, or the test tells them apart."""

import ast
from collections.abc import Callable
from functools import partial
from itertools import islice, product
from typing import Any

import pytest

from case_files import cases
from flashmore.upgrade.find import find_sites
from flashmore.upgrade.rewrite import Rewriting
from flashmore.upgrade.site import Edit, Site
from flashmore.upgrade.verify.verifier import Verifier

Edits = tuple[Edit, ...]
Change = Callable[[Rewriting, Edits], Edits | None]
"""Makes edits wrong; None where it has nothing to change."""

WRAPPED: dict[str, tuple[int | str, str]] = {
    "output scaled": ("out", "x * 1.02"),
    "output negated": ("out", "-x"),
    "output detached": ("out", "x.detach()"),
    "output in float64": ("out", "x.double()"),
    "output reversed": ("out", "x.flip(-1)"),
    "output of the next query": ("out", "x.roll(1, -2)"),
    "queries scaled": (0, "x * 1.05"),
    "queries detached": (0, "x.detach()"),
    "keys scaled": (1, "x * 0.9"),
    "keys detached": (1, "x.detach()"),
    "keys reversed": (1, "x.flip(-2)"),
    "values detached": (2, "x.detach()"),
    "values reversed": (2, "x.flip(-2)"),
    "values rounded to float16": (2, "x.half().to(x.dtype)"),
    "scale doubled": ("scale", "x * 2"),
    "scale with an offset": ("scale", "x + 0.1"),
    "mask of the next key": ("attn_mask", "x.roll(1, -1)"),
    "mask reversed": ("attn_mask", "x.flip(-1)"),
    "dropout of what was kept": ("dropout_p", "1 - x"),
    "dropout halved": ("dropout_p", "x / 2"),
}
"""What stands in the place of the call (`out`) or of one of its arguments, x."""
DROPPED = ("attn_mask", "is_causal", "dropout_p", "scale")
ADDED = ("is_causal=True", "dropout_p=0.2", "scale=0.3")
EXCHANGED = ((0, 1), (1, 2))


def in_call(
    change: Callable[[ast.Call], ast.expr | None], rewriting: Rewriting, edits: Edits
) -> Edits | None:
    """The edits with their call of SDPA changed."""
    del rewriting
    for index, edit in enumerate(edits):
        if "scaled_dot_product_attention(" not in edit.text:
            continue
        whole = ast.parse(f"({edit.text.strip()})", mode="eval")
        calls = (each for each in ast.walk(whole) if isinstance(each, ast.Call))
        call = next(each for each in calls if ast.unparse(each.func).endswith("scaled_dot_product_attention"))
        made = change(call)
        if made is None:
            return None
        text = ast.unparse(ast.fix_missing_locations(_Put(call, made).visit(whole)))
        return (*edits[:index], Edit(edit.start, edit.end, f"({text})"), *edits[index + 1 :])
    return None


class _Put(ast.NodeTransformer):
    """One node in the place of another."""

    def __init__(self, old: ast.AST | str, new: ast.expr) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        found = node is self.old or (isinstance(node, ast.Name) and node.id == self.old)
        return self.new if found else self.generic_visit(node)


def wrapped(where: int | str, template: str, call: ast.Call) -> ast.expr | None:
    def put(given: ast.expr) -> ast.expr:
        made: ast.expr = _Put("x", given).visit(ast.parse(template, mode="eval").body)
        return made

    if where == "out":
        inner = ast.Call(call.func, call.args, call.keywords)
        return put(inner)
    if isinstance(where, int):
        call.args[where] = put(call.args[where])
        return call
    for keyword in call.keywords:
        if keyword.arg == where:
            keyword.value = put(keyword.value)
            return call
    return None


def dropped(name: str, call: ast.Call) -> ast.expr | None:
    left = [each for each in call.keywords if each.arg != name]
    if len(left) == len(call.keywords):
        return None
    call.keywords = left
    return call


def added(text: str, call: ast.Call) -> ast.expr | None:
    name, value = text.split("=")
    given = {each.arg for each in call.keywords}
    if name in given or (name == "is_causal" and "attn_mask" in given):
        return None
    call.keywords.append(ast.keyword(name, ast.parse(value, mode="eval").body))
    return call


def exchanged(one: int, two: int, call: ast.Call) -> ast.expr | None:
    if ast.dump(call.args[one]) == ast.dump(call.args[two]):
        return None
    call.args[one], call.args[two] = call.args[two], call.args[one]
    return call


def statement_lost(number: int, rewriting: Rewriting, edits: Edits) -> Edits | None:
    span = _statement(number, rewriting, edits)
    return None if span is None else _with(edits, Edit(*span, ""))


def statement_repeated(number: int, rewriting: Rewriting, edits: Edits) -> Edits | None:
    span = _statement(number, rewriting, edits)
    if span is None:
        return None
    return _with(edits, Edit(span[1], span[1], rewriting.text.source[slice(*span)]))


def operand_deleted(rewriting: Rewriting, edits: Edits) -> Edits | None:
    statement, node = rewriting.found.final.statement, rewriting.found.v.value.node
    if statement is None or not isinstance(node, ast.Name):
        return None
    at = rewriting.text.whole_lines(statement)[0]
    if any(each.start <= at < each.end for each in edits):
        return None
    return _with(edits, Edit(at, at, f"{rewriting.text.indent(statement)}del {node.id}\n"))


def edit_forgotten(number: int, rewriting: Rewriting, edits: Edits) -> Edits | None:
    del rewriting
    others = [each for each in edits if each.text.strip() and "scaled_dot_product" not in each.text]
    return tuple(each for each in edits if each is not others[number]) if number < len(others) else None


def _with(edits: Edits, one: Edit) -> Edits:
    return tuple(sorted((*edits, one), key=lambda each: (each.start, each.end)))


def _statement(number: int, rewriting: Rewriting, edits: Edits) -> tuple[int, int] | None:
    """The lines of a statement that no edit touches, and that is not the last in its block."""
    spans = []
    for statement, place in rewriting.blocks.places.items():
        span = rewriting.text.whole_lines(statement)
        simple = isinstance(statement, (ast.Assign, ast.AugAssign, ast.Expr)) and len(place.block) > 1
        docstring = isinstance(getattr(statement, "value", None), ast.Constant)
        if simple and not docstring and all(e.end <= span[0] or span[1] <= e.start for e in edits):
            spans.append(span)
    return spans[number] if number < len(spans) else None


CHANGES: dict[str, Change] = {
    **{name: partial(in_call, partial(wrapped, *how)) for name, how in WRAPPED.items()},
    **{f"{name} dropped": partial(in_call, partial(dropped, name)) for name in DROPPED},
    **{f"{text} added": partial(in_call, partial(added, text)) for text in ADDED},
    **{
        f"arguments {one}, {two} exchanged": partial(in_call, partial(exchanged, one, two))
        for one, two in EXCHANGED
    },
    **{f"statement {number} lost": partial(statement_lost, number) for number in range(3)},
    **{f"statement {number} repeated": partial(statement_repeated, number) for number in range(3)},
    **{f"edit {number} forgotten": partial(edit_forgotten, number) for number in range(2)},
    "operand deleted": operand_deleted,
}


EQUIVALENT = {
    ("bias: Sizes that are known from an assertion", "statement 1 repeated"),  # the same view again
    ("bias: Sizes that are known from an assertion", "statement 2 repeated"),
    (
        "bias: Several fills, with masks that no longer have a name",
        "statement 2 repeated",
    ),  # the same fill again
    ("additive-mask: A buffer that every call fills again", "edit 0 forgotten"),  # a comment
    ("boolean-mask: A finite fill between views, of a softmax over folded heads", "edit 0 forgotten"),
    (
        "boolean-mask: A finite fill between views, of a softmax over folded heads",
        "statement 2 repeated",
    ),  # the same view again
    ("boolean-mask: Two masks under different conditions", "statement 0 lost"),  # nothing reads it
    ("zeros: Rows that keep no key", "statement 0 lost"),  # nothing reads it
    ("causal: The triangle is cut out of a new tensor in place", "statement 1 lost"),  # nothing reads it
    ("plain: A view of the output becomes a reshape", "mask of the next key"),  # a bias of zeros
    ("plain: A view of the output becomes a reshape", "mask reversed"),
    ("plain: A view of the output becomes a reshape", "attn_mask dropped"),
    ("plain: Functions, operators, an explicit scale", "edit 0 forgotten"),  # old lines that nothing reads
    ("plain: Two names for the scores, and a comment inside the product", "edit 0 forgotten"),  # a comment
}
"""What a change happens to leave right."""
UNSEEN = {("output: The output is viewed after other operations", "edit 0 forgotten")}
"""A `view` below the lines of the attention, which a test does not run: `checks/output.py` decides."""


def rewritten(source: str, change: Change, patch: pytest.MonkeyPatch) -> list[Site] | None:
    """The sites of a source where every rewriting is made wrong; None where there is nothing to change."""
    right = Rewriting.edits
    applied = []

    def wrong(rewriting: Rewriting) -> Edits:
        edits = right(rewriting)
        made = change(rewriting, edits)
        applied.append(made is not None)
        return edits if made is None else made

    with patch.context() as patched:
        patched.setattr(Rewriting, "edits", wrong)
        sites = find_sites(
            source, f"{hash(source)} {change}"
        )  # the tests of one path have a limit of time together
    return sites if applied and all(applied) else None


def is_found(site: Site, verifier: Verifier) -> bool:
    """Whether a wrong rewrite is refused, cannot be tested, or fails the test."""
    if site.verdict != "rewritten" or site.fragment is None:
        return True
    return not verifier.verify(site).passed


def survivors(
    patch: pytest.MonkeyPatch, verifier: Verifier, every: int, start: int = 0
) -> tuple[int, set[tuple[str, str]]]:
    """How many wrong rewrites there are, one in so many of all, and those that nothing finds."""
    number, alive = 0, set()
    attentions = (case for case in cases() if case.after and "scaled_dot_product" in case.after)
    all_of_them = product(attentions, CHANGES.items())
    for case, (kind, change) in islice(all_of_them, start, None, every):
        sites = rewritten(case.before, change, patch)
        number += sites is not None
        if sites is not None and not all(is_found(site, verifier) for site in sites):
            alive.add((case.name, kind))
    return number, alive - EQUIVALENT - UNSEEN


@pytest.mark.parametrize("part", range(2))  # which run side by side
def test_wrong_rewrites_are_refused_or_fail_the_test(
    part: int, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, alive = survivors(monkeypatch, verifier, every=24, start=12 * part)
    assert number >= 55
    assert alive == set()


@pytest.mark.long
def test_all_wrong_rewrites_are_refused_or_fail_the_test(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, alive = survivors(monkeypatch, verifier, every=1)
    assert number >= 1300
    assert alive == set()
