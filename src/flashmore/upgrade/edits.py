"""Edits of a source text: put in, and kept out of each other's way."""

from collections.abc import Iterable
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


def composed(first: Iterable[Edit], then: Iterable[Edit]) -> tuple[Edit, ...] | None:
    """Edits of a source, and those of the source that results, as edits of the first one.

    None where an edit of the second kind begins or ends within one of the first.
    """
    earlier = sorted(first, key=lambda edit: edit.start)
    result, kept = [], list(earlier)
    for edit in then:
        start, end, shift = edit.start, edit.end, 0
        for one in earlier:
            at, over = one.start + shift, one.start + shift + len(one.text)
            grown = len(one.text) - (one.end - one.start)
            if at < edit.end and edit.start < over:
                if not (edit.start <= at and over <= edit.end):
                    return None
                kept = [each for each in kept if each is not one]
            start -= grown if over <= edit.start else 0
            end -= grown if over <= edit.end else 0
            shift += grown
        result.append(Edit(start, end, edit.text))
    return tuple(sorted((*result, *kept), key=lambda edit: (edit.start, edit.end)))


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
