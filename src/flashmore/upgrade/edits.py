"""Edits of a source text: put in, and kept out of each other's way."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from flashmore.upgrade.site import Edit, Site

ADVICE = "assign the result of the inner one to a name, in its own statement"


def apply(source: str, sites: Iterable[Site]) -> str:
    """The source with the edits of the rewritten sites made.

    Sites may share an edit, such as an import; other edits do not overlap (`apart`).
    """
    return edited(source, {edit for site in sites if site.verdict == "rewritten" for edit in site.edits})


def edited(source: str, edits: Iterable[Edit]) -> str:
    """The source with some edits made, none of which overlap."""
    result, at = [], 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        result += [source[at : edit.start], edit.text]
        at = edit.end
    return "".join([*result, source[at:]])


def composed(source: str, first: Sequence[Edit], then: Iterable[Edit]) -> tuple[Edit, ...]:
    """Edits of a source, and those of the source that results, as edits of the first one."""
    changed = edited(source, first)
    spans: list[tuple[int, int, int]] = []
    """In the changed source, with the number of characters by which it grew."""
    for one in sorted(first, key=lambda edit: edit.start):
        at, grown = one.start + sum(grown for *_, grown in spans), len(one.text) - (one.end - one.start)
        spans.append((at, at + len(one.text), grown))

    def before(offset: int) -> int:
        return offset - sum(grown for _, end, grown in spans if end <= offset)

    groups: list[tuple[int, int, list[Edit]]] = []
    own: list[tuple[int, int, list[Edit]]] = [(at, end, []) for at, end, _ in spans]
    for start, end, edits in sorted(
        (*own, *((e.start, e.end, [e]) for e in then)), key=lambda each: each[:2]
    ):
        if groups and start < groups[-1][1]:
            at, over, others = groups.pop()
            start, end, edits = at, max(over, end), [*others, *edits]
        groups.append((start, end, edits))
    return tuple(
        Edit(before(at), before(end), edited(changed[at:end], [_moved(each, -at) for each in edits]))
        for at, end, edits in groups
    )


def _moved(edit: Edit, by: int) -> Edit:
    return Edit(edit.start + by, edit.end + by, edit.text)


def apart(sites: Iterable[Site]) -> list[Site]:
    """The sites, of which one that would change the lines of another before it is refused."""
    found: list[Site] = []
    made: set[Edit] = set()
    for site in sites:
        if any(overlap(one, other) for one in site.edits for other in made):
            reason = "its lines overlap another attention in this function that is rewritten"
            refused = replace(site, verdict="refused", reason=reason, advice=ADVICE)
            found.append(replace(refused, edits=(), guard=None, fragment=None, assumptions=(), notes=()))
        else:
            found.append(site)
            made.update(site.edits)
    return found


def overlap(one: Edit, other: Edit) -> bool:
    """Whether two different edits change the same characters."""
    return one != other and one.start < other.end and other.start < one.end
