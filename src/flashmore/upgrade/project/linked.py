"""What the project around a file rules out: by its versions of torch, subclasses, compilers and derivatives.

The output that is differentiated is followed to the modules that made it (`origins.py`): their attention is
refused, that of other networks is not. Where it cannot be followed, every file that may take part gets an
assumption: the file of the place that takes second derivatives, those that call it (`train.py`, which calls
the penalty in `losses.py`), and those that one of these imports, directly or through others.
"""

import ast
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from packaging.version import Version

from flashmore.upgrade.notebooks.notebook import is_notebook, notebook_at
from flashmore.upgrade.project import pins
from flashmore.upgrade.project.definitions import Definitions, texts_around
from flashmore.upgrade.project.files import folder_of, real
from flashmore.upgrade.project.gradients import HINT as LAYOUT_HINT
from flashmore.upgrade.project.gradients import layouts
from flashmore.upgrade.project.imports import MOST_FOLLOWED, Definition, Imports, parsed
from flashmore.upgrade.project.origins import Made, Origins
from flashmore.upgrade.project.patched import Patched
from flashmore.upgrade.project.subclasses import FORMULAS, Subclasses
from flashmore.upgrade.project.twice import ADVICE, HINT, Use, reason, uses
from flashmore.upgrade.project.walk import project_files, root_of
from flashmore.upgrade.rules import rule
from flashmore.upgrade.site import Searched, Site
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.source.scopes import MODULE, Function
from flashmore.upgrade.source.scripted import COMPILERS, compilers, unsupported

_WORDS = re.compile(r"[^\W\d]\w*")
_YOURSELF = "rewrite it yourself, if that is not for these lines"


@dataclass(frozen=True)
class Link:
    """Why a file's attention may be differentiated twice, or compiled."""

    use: Use
    file: Path
    """Where the use stands."""
    through: Path
    """The file that calls it, or the same one."""
    made: Made
    """What made the output that is differentiated."""


class Project:
    """The files around those that are searched, read where a rewriting asks for them and no sooner.

    Args:
        given: the paths that are searched.
        files: the Python files and notebooks in them.
        target: the oldest version of torch that it supports; None for what its requirements say.
    """

    def __init__(self, given: Sequence[Path], files: Sequence[Path], target: Version | None = None) -> None:
        texts_around.cache_clear()  # which another search may have filled
        self.given = given
        self.files = files
        self.target = target
        self.links: dict[Path, list[Link]] | None = None
        """By file, the places of which it cannot be seen what they differentiate."""
        self.subclasses: Subclasses | None = None
        self.patched: Patched | None = None
        self.reached: dict[Definition, Set[Path]] = {}
        """By function or class, the files whose models it may be given."""
        self.compiled: dict[str, dict[Path, Link]] = {}
        """By compiler and file, a place where the file's models may be given to the compiler."""
        self.seen: list[Link] = []
        """The places of which something can be seen, the certain ones first."""
        self.pins = cache(pins.pins)
        self.limits: list[str] = []
        """What was not looked at, as assumptions."""

    def judged(self, found: Searched) -> Searched:
        """What was found, with every rewriting refused that the project rules out.

        It may differentiate twice, or require a version of torch that lacks what would be called.
        """
        if not any(site.verdict == "rewritten" for site in found.sites):
            return found
        path = Path(found.path)
        pinned = self.pins(root_of(path) or real(path).parent)
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
        return replace(found, sites=tuple(self._judged(site, found) for site in found.sites))

    def _judged(self, site: Site, found: Searched) -> Site:
        if site.verdict != "rewritten":
            return site
        path = real(Path(found.path))
        if self.subclasses is not None and (other := self.subclasses.why_not(found, site)) is not None:
            return site.refused(other, "give it another name there")
        evaluated = site.code in FORMULAS
        if self.patched is not None and (why := self.patched.why_not(found, site, evaluated)) is not None:
            return site.refused(why, _YOURSELF)
        if (why := self._not_compiled(path, site, found)) is not None:
            return site.refused(why, _YOURSELF)
        if rule(site.code).second_derivatives:
            return site
        first, last = found.lines_of(site)
        names = {site.symbol.partition(".")[0]}
        if site.symbol == MODULE:  # whose lines make variables
            names = {*_WORDS.findall("\n".join(found.source.splitlines()[first - 1 : last]))}
        through = [
            each for each in self.seen if any(each.made.holds(path, name, first, last) for name in names)
        ]
        link = next((each for each in through if not each.use.layout), None)
        if link is not None and link.use.certain:
            return site.refused(reason(_said(link)), ADVICE)
        links = [*([link] if link is not None else []), *(self.links or {}).get(path, ())]
        assumed = [
            f"no second derivatives are taken through it in {_said(each)}"
            for each in links
            if not each.use.layout
        ]
        if site.graded:
            gradients = "the gradient of " + " or ".join(f"`{each}`" for each in site.graded)
            assumed += [
                f"{_said(each)} does not read how {gradients} is laid out in memory"
                for each in [*through, *links]
                if each.use.layout
            ]
        return replace(site, assumptions=tuple(dict.fromkeys((*site.assumptions, *assumed, *self.limits))))

    def _not_compiled(self, path: Path, site: Site, found: Searched) -> str | None:
        """Why a compiler of the project would no longer take the lines; else None."""
        first, last = found.lines_of(site)
        old, new = found.source.splitlines()[first - 1 : last], (edit.text for edit in site.edits)
        for compiler, files in self.compiled.items():
            what = unsupported(compiler, "\n".join(old), "\n".join(new)) if path in files else None
            if what is not None:
                where = f"{files[path].file.name}, line {files[path].use.line}"
                return f"{compiler} compiles models in {where}, and does not support {what}"
        return None

    def _given(self, origins: Origins, path: Path, line: int) -> Set[Path]:
        """The files of the models that a hook may see, which a line registers."""
        place = _place(path, line, "a hook")
        key = (path, place.use.within)
        if key not in self.reached:
            self.reached[key] = _reached([place], origins).keys()
        return self.reached[key]

    def _links(self) -> dict[Path, list[Link]]:
        files = dict.fromkeys(map(real, self.files))
        folders = list(dict.fromkeys(map(folder_of, self.given)))
        for folder in folders:
            more, not_read = project_files(folder)
            if not_read:
                one, others = not_read[0], len(not_read) - 1
                named = f"{_shown(Path(one.path))}: {one.reason}{f'; and {others:,} more' if others else ''}"
                self.limits.append(f"no unread file takes second derivatives ({named})")
            files |= dict.fromkeys(map(real, more))
        imports = Imports(files)
        origins = Origins(imports)
        self.subclasses = Subclasses(origins.texts)
        self.patched = Patched(origins.texts, folders, imports.imported, partial(self._given, origins))
        self.compiled = {name: _reached(places, origins) for name, places in _compiled(origins).items()}
        found = list(_uses(origins))
        self.seen = sorted((each for each in found if each.made.lines), key=lambda link: not link.use.certain)
        linked: dict[Path, list[Link]] = {}
        for kind in ((False, True), (False, False), (True, True)):
            some = [e for e in found if (e.use.layout, e.use.certain) == kind and not e.made.known]
            for path, link in _reached(some, origins).items():
                linked.setdefault(path, []).append(link)
        if imports.cut_off:
            self.limits.append(
                f"no import beyond the nearest {MOST_FOLLOWED:,} files leads to second derivatives"
            )
        return linked


def _uses(origins: Origins) -> Iterator[Link]:
    """The places of all files that take second derivatives, or read how a first one is laid out."""
    for hint, of in ((HINT, uses), (LAYOUT_HINT, layouts)):
        for path in origins.texts.matching(hint):
            tree = origins.tree(path)
            for use in of(Module(tree)) if tree is not None else ():
                origins.imports.follow_more()
                values, by = use.differentiated()
                made = origins.of(path, use.node, values, by) if use.node is not None else Made(known=False)
                yield Link(use, path, path, made)


def _compiled(origins: Origins) -> dict[str, list[Link]]:
    """By compiler, the places of all files that give it models."""
    found: dict[str, list[Link]] = {}
    for path in origins.texts.matching(COMPILERS):
        module = Definitions(path).module(path)
        for name, line in compilers(module, decorators=False) if module is not None else ():
            found.setdefault(name, []).append(_place(path, line, name))
    return found


def _place(path: Path, line: int, what: str) -> Link:
    """A line of a file that does something with models that its function or class is given."""
    tree = parsed(path)
    around = (
        each.name
        for each in (tree.body if tree is not None else ())
        if isinstance(each, Function | ast.ClassDef) and each.lineno <= line <= (each.end_lineno or line)
    )
    return Link(Use(line, what, next(around, None)), path, path, Made())


def _reached(found: Iterable[Link], origins: Origins) -> dict[Path, Link]:
    """The files whose models any of the uses may be given, each with the first link that was found."""
    imports = origins.imports
    reached = _callers(found, origins)
    imports.follow_more()
    ahead = [*reached]  # the files of the uses first: they are read whatever else there is
    while ahead:
        path = ahead.pop(0)
        for other in sorted(imports.imported(path)):
            if other not in reached:
                reached[other] = reached[path]
                ahead.append(other)
    return reached


def _callers(found: Iterable[Link], origins: Origins) -> dict[Path, Link]:
    """The files of the uses, and every file that calls what one stands in, directly or through others."""
    imports = origins.imports
    known: dict[Definition, Link] = {}
    callers: dict[Path, Link] = {}
    for link in found:
        callers.setdefault(link.file, link)
        if link.use.within is not None:
            known.setdefault((link.file, link.use.within), link)
    words: set[str] = set()
    new_words = {name for _, name in known if name is not None}
    imports.follow_more()
    while new_words and not imports.exhausted:
        words |= new_words
        near = origins.texts.mentioning(new_words)
        new = {one: link for path in near for one, link in _calling(path, known, imports)}
        for (path, name), link in new.items():
            callers.setdefault(path, replace(link, through=path))
            known.setdefault((path, name), link)
        named = {name for _, name in new if name is not None}
        new_words = named | {name for path in near for name in imports.aliases(path, known.keys())}
        new_words -= words
    return callers


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
