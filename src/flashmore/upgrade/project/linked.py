"""Whether a project differentiates twice through the attention of one of its files.

A file is linked with a place that takes second derivatives where it is the file of that place, or one
that calls it (`train.py`, which calls the penalty in `losses.py`), or where one of these imports it, directly
or through others: a penalty in `train.py` goes through the discriminator's attention, one in another program
of the same repository does not.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.version import Version

from flashmore.upgrade.notebooks.notebook import is_notebook, notebook_at, source_of
from flashmore.upgrade.project import pins
from flashmore.upgrade.project.files import Unreadable, content, is_folder, real
from flashmore.upgrade.project.imports import MOST_FOLLOWED, Definition, Imports, parsed
from flashmore.upgrade.project.twice import ADVICE, HINT, Use, reason, uses
from flashmore.upgrade.project.walk import project_files, root_of
from flashmore.upgrade.rules import rule
from flashmore.upgrade.site import Searched, Site
from flashmore.upgrade.source.module import Module

FEW = 40
"""So many names are looked for one by one; more of them faster among all words."""
_WORD = re.compile(rb"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Link:
    """Why a file's attention may be differentiated twice."""

    use: Use
    file: Path
    """Where the use stands."""
    through: Path
    """The file that calls it, or the same one."""


class Project:
    """The files around those that are searched, read where a rewriting asks for them and no sooner.

    Args:
        given: the paths that are searched.
        files: the Python files and notebooks in them.
        target: the oldest version of torch that it supports; None for what its requirements say.
    """

    def __init__(self, given: Sequence[Path], files: Sequence[Path], target: Version | None = None) -> None:
        self.given = given
        self.files = files
        self.target = target
        self.links: dict[Path, list[Link]] | None = None
        self.pinned: dict[Path, list[pins.Pin]] = {}
        self.limits: list[str] = []
        """What was not looked at, as assumptions."""

    def judged(self, found: Searched) -> Searched:
        """What was found, with every rewriting refused that the project rules out.

        It may differentiate twice, or require a version of torch that lacks what would be called.
        """
        if not any(site.verdict == "rewritten" for site in found.sites):
            return found
        path = Path(found.path)
        pinned = self._pins(root_of(path) or real(path).parent)
        if pinned or self.target is not None:
            sites = (
                pins.judged(each, pinned, self.target) if each.verdict == "rewritten" else each
                for each in found.sites
            )
            found = replace(found, sites=tuple(sites))
        if self.links is None:
            try:
                self.links = self._links()
            except RecursionError:
                self.links = {}
                self.limits.append("no import beyond the search depth leads to second derivatives")
        links = self.links.get(real(Path(found.path)), [])
        if not links and not self.limits:
            return found
        return replace(found, sites=tuple(self._judged(site, links) for site in found.sites))

    def _pins(self, root: Path) -> list[pins.Pin]:
        if root not in self.pinned:
            self.pinned[root] = pins.pins(root)
        return self.pinned[root]

    def _judged(self, site: Site, links: Sequence[Link]) -> Site:
        if site.verdict != "rewritten" or rule(site.code).second_derivatives:
            return site
        certain = next((link for link in links if link.use.certain), None)
        if certain is not None:
            return site.refused(reason(_said(certain)), ADVICE)
        assumed = [f"no second derivatives are taken in {_said(link)}" for link in links]
        return replace(site, assumptions=(*site.assumptions, *assumed, *self.limits))

    def _links(self) -> dict[Path, list[Link]]:
        files = dict.fromkeys(map(real, self.files))
        for folder in dict.fromkeys(
            real(path) if is_folder(path) else real(path).parent for path in self.given
        ):
            more, not_read = project_files(folder)
            if not_read:
                one, others = not_read[0], len(not_read) - 1
                named = f"{_shown(Path(one.path))}: {one.reason}{f'; and {others:,} more' if others else ''}"
                self.limits.append(f"no unread file takes second derivatives ({named})")
            files |= dict.fromkeys(map(real, more))
        imports = Imports(files)
        found = list(_uses(files))
        linked: dict[Path, list[Link]] = {}
        for certain in (True, False):
            some = [(path, use) for path, use in found if use.certain is certain]
            for path, link in _reached(some, imports).items():
                linked.setdefault(path, []).append(link)
        if imports.cut_off:
            self.limits.append(
                f"no import beyond the nearest {MOST_FOLLOWED:,} files leads to second derivatives"
            )
        return linked


def _uses(files: Iterable[Path]) -> Iterator[tuple[Path, Use]]:
    """The places of all files; of those in one function the first certain one, else the first."""
    for path in files:
        if not HINT.search(_bytes(path)):
            continue
        try:
            found = uses(Module(parsed(path)))
        except (Unreadable, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        first: dict[str | None, Use] = {}
        for use in sorted(found, key=lambda use: (not use.certain, use.line)):
            first.setdefault(use.within, use)
        yield from ((path, use) for use in first.values())


def _reached(found: Iterable[tuple[Path, Use]], imports: Imports) -> dict[Path, Link]:
    """The files that any of the uses may differentiate through, each with the first link that was found."""
    reached = _callers(found, imports)
    imports.follow_more()
    ahead = [*reached]  # the files of the uses first: they are read whatever else there is
    while ahead:
        path = ahead.pop(0)
        for other in sorted(imports.imported(path)):
            if other not in reached:
                reached[other] = reached[path]
                ahead.append(other)
    return reached


def _callers(found: Iterable[tuple[Path, Use]], imports: Imports) -> dict[Path, Link]:
    """The files of the uses, and every file that calls what one stands in, directly or through others."""
    known: dict[Definition, Link] = {}
    callers: dict[Path, Link] = {}
    for path, use in found:
        link = Link(use, path, path)
        callers.setdefault(path, link)
        if use.within is not None:
            known[path, use.within] = link
    words: set[str] = set()
    new_words = {name for _, name in known if name is not None}
    imports.follow_more()
    while new_words and not imports.exhausted:
        words |= new_words
        sought = {name.encode() for name in new_words}
        mentioning = [path for path in sorted(imports.files) if _mentions(_bytes(path), sought)]
        new = {one: link for path in mentioning for one, link in _calling(path, known, imports)}
        for (path, name), link in new.items():
            callers.setdefault(path, replace(link, through=path))
            known.setdefault((path, name), link)
        named = {name for _, name in new if name is not None}
        new_words = named | {name for path in mentioning for name in imports.aliases(path, known.keys())}
        new_words -= words
    return callers


def _mentions(data: bytes, names: Set[bytes]) -> bool:
    if len(names) <= FEW:
        return any(name in data for name in names)
    return not names.isdisjoint(_WORD.findall(data))


def _calling(
    path: Path, known: Mapping[Definition, Link], imports: Imports
) -> Iterator[tuple[Definition, Link]]:
    """The definitions of a file in which one of those that are known is called, or named at all."""
    for within, names in imports.outline(path).mentions.items():
        if (path, within) in known:
            continue
        own = {(path, name.partition(".")[0]) for name in names}
        called = next((one for one in (*own, *imports.taken(path, names)) if one in known), None)
        if called is not None:
            yield (path, within), known[called]


def _said(link: Link) -> str:
    where = f"line {link.use.line}"
    if is_notebook(link.file):
        where = notebook_at(link.file).worded(where)
    text = f"{_shown(link.file)}, {where} ({link.use.what})"
    return text if link.through == link.file else f"{text}, called from {_shown(link.through)}"


def _shown(path: Path) -> str:
    """As seen from the working directory, where it is below it."""
    here = real(Path.cwd())
    return os.fspath(path.relative_to(here) if path.is_relative_to(here) else path)


def _bytes(path: Path) -> bytes:
    """What a file holds; nothing where it cannot be read."""
    try:
        return source_of(path).encode() if is_notebook(path) else content(path)
    except Unreadable:
        return b""
