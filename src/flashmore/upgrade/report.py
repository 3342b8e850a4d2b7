"""What is said of the places that were found: as text by file, as JSON."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from flashmore.upgrade.edits import apply, edited
from flashmore.upgrade.notebooks.notebook import Cell
from flashmore.upgrade.patch import patch
from flashmore.upgrade.site import Edit, NotRead, Searched, Site
from flashmore.upgrade.text import Text
from flashmore.upgrade.verify.result import Verification

_KEYS = ("path", "cell", "line", "end_line", "symbol", "code", "verdict", "reason", "advice", "rule", "guard")
INDENT = " " * 6
"""Before each line of a diff in the report."""
_HUNK = re.compile(r"^@@ .* @@$", re.MULTILINE)


class Gain(Protocol):
    """What a measurement says, of one rewrite or of all of them (`flashmore.benchmark.gain`)."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""

    def lines(self) -> list[str]:
        """What a person reads."""


class SiteGain(Gain, Protocol):
    """What a measurement says of one rewrite."""

    @property
    def slower(self) -> bool:
        """Whether it is slower, and surely so."""


@dataclass
class SiteReport:
    """A place, and what is known of it by now."""

    site: Site
    diff: str = ""
    """A unified diff of this rewrite alone; empty where nothing is rewritten."""
    verifications: list[Verification] = field(default_factory=list)
    """On synthetic tensors, on what an example or a run saw; empty where no test was asked for."""
    gain: SiteGain | None = None
    """What was measured of it, where a gain was asked for."""
    written: bool = False

    @property
    def passed(self) -> bool | None:
        """None where no test was asked for; a case that differs anywhere outweighs every other test."""
        if not self.verifications:
            return None
        return any(verification.passed for verification in self.verifications) and not self.refuted

    @property
    def refuted(self) -> bool:
        """Whether any test found a case that differs."""
        return any(verification.refuted for verification in self.verifications)

    @property
    def slower(self) -> bool:
        """Whether it was measured, and is slower."""
        return self.gain is not None and self.gain.slower

    @property
    def unfused(self) -> bool:
        """Whether nothing is gained, because PyTorch selects its unfused kernel for the rewrite."""
        return any(verification.unfused for verification in self.verifications)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        site = self.site
        return {
            **{name: getattr(site, name) for name in _KEYS},
            "diff": self.diff,
            "tested": self.passed,
            "proved": self.passed,  # its former name, for one release
            "tests": [asdict(verification) for verification in self.verifications],
            "gain": None if self.gain is None else self.gain.to_json(),
            "written": self.written,
            "assumptions": self.assumptions,
            "notes": list(site.notes),
        }

    @property
    def assumptions(self) -> list[str]:
        """Those of the place and of its tests, each once."""
        tested = (each for verification in self.verifications for each in verification.assumptions)
        return list(dict.fromkeys((*self.site.assumptions, *tested)))


@dataclass
class FileReport:
    """A file in which something was found."""

    found: Searched
    sites: list[SiteReport]
    why_not_written: str | None = None

    @classmethod
    def of(cls, found: Searched) -> "FileReport":
        """A report that holds what the search found and no more."""
        return cls(found, [SiteReport(site) for site in found.sites])

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.found.path)

    @property
    def written(self) -> bool:
        """Whether the file was changed."""
        return any(report.written for report in self.sites)

    @property
    def rewritten(self) -> list[SiteReport]:
        """The places that could be rewritten."""
        return [report for report in self.sites if report.site.verdict == "rewritten"]

    def choose(self, *, even_if_slower: bool) -> list[SiteReport]:
        """The places to be written; where there are none, `why_not_written` says why.

        Args:
            even_if_slower: what was measured to be slower, too.
        """
        passed = [report for report in self.rewritten if report.passed]
        chosen = [each for each in passed if even_if_slower or not (each.slower or each.unfused)]
        if self.rewritten and not chosen:
            slower = any(each.slower for each in passed)
            why = "slower than before" if slower else "no gain without a fused kernel"
            anyway = f"{why}; use --even-if-slower to write it anyway"
            self.why_not_written = anyway if passed else "no rewrite passed its test"
        return chosen

    def rewriting(self, reports: Sequence[SiteReport]) -> str:
        """The source with some of the rewrites."""
        return apply(self.found.source, [report.site for report in reports])

    def text_of(self, report: SiteReport) -> Text:
        """The text in which the lines of a place count: the source, or a notebook's cell."""
        return self._texts[report.site.cell]

    @cached_property
    def _texts(self) -> dict[int | None, Text]:
        if self.found.notebook is None:
            return {None: Text(self.found.source)}
        return {cell.number: Text(cell.whole) for cell in self.found.notebook.cells}

    def encoded(self, reports: Sequence[SiteReport]) -> bytes:
        """The file with some of the rewrites."""
        if self.found.notebook is not None:
            return self.found.notebook.encoded(self.found.data, _edits(reports))
        return self.rewriting(reports).encode(self.found.encoding)

    def patch(self, reports: Sequence[SiteReport]) -> str:
        """Some of the rewrites as a patch of the source; of a notebook's, each hunk is headed by its cell.

        A byte order mark is a character of the first line there.
        """
        if self.found.notebook is not None:
            return self._patch_of_cells(self.found.notebook.changed(_edits(reports)))
        mark = "\ufeff" if self.found.encoding == "utf-8-sig" else ""
        return patch(mark + self.found.source, mark + self.rewriting(reports), self.path)

    def patch_bytes(self, reports: Sequence[SiteReport]) -> bytes:
        """The same for `git apply`: the file's lines as its bytes are, names as the system has them."""
        changed = self.encoded(reports)
        # In latin-1 each byte is one character, whatever it means in the file.
        text = patch(self.found.data.decode("latin-1"), changed.decode("latin-1"), self.path)
        *names, rest = text.split("\n", 2)
        return b"\n".join([*map(os.fsencode, names), rest.encode("latin-1")])

    def _patch_of_cells(self, changed: Iterable[tuple[Cell, list[Edit]]]) -> str:
        names: list[str] = []
        hunks = []
        for cell, edits in changed:
            *names, rest = patch(cell.whole, edited(cell.whole, edits), self.path).split("\n", 2)
            hunks.append(_HUNK.sub(rf"\g<0> cell {cell.number}", rest))
        return "\n".join([*names, "".join(hunks)])


@dataclass
class Report:
    """Everything that was found."""

    searched: int = 0
    """Files that were read."""
    files: list[FileReport] = field(default_factory=list)
    not_read: list[NotRead] = field(default_factory=list)
    problem: str | None = None
    """What went wrong in the user's example or script."""
    gain: Gain | None = None
    ignored: int = 0
    """Places that are not reported, because a comment says so."""
    remarks: list[str] = field(default_factory=list)
    """On such comments."""

    @property
    def sites(self) -> list[SiteReport]:
        """The places of all files."""
        return [report for file in self.files for report in file.sites]

    def count(self, verdict: str) -> int:
        """How many places have a verdict."""
        return sum(report.site.verdict == verdict for report in self.sites)

    def to_json(self) -> dict[str, Any]:
        """One JSON document."""
        return {
            "searched": self.searched,
            "ignored": self.ignored,
            "problem": self.problem,
            "gain": None if self.gain is None else self.gain.to_json(),
            "sites": [report.to_json() for report in self.sites],
            "not_read": [asdict(one) for one in self.not_read],
            "written": [str(file.path) for file in self.files if file.written],
            "not_written": [
                {"path": str(file.path), "reason": file.why_not_written}
                for file in self.files
                if file.why_not_written is not None
            ],
        }

    def summary(self) -> str:
        """One line: how many files, places of each verdict, passed tests and written files."""
        parts = [f"{self.count('rewritten')} can be rewritten"]
        asked = [report for report in self.sites if report.passed is not None]
        if asked:
            refuted = sum(report.refuted for report in asked)
            failed_it = f", {refuted} failed the test" if refuted else ""
            parts[0] += f" ({sum(report.passed is True for report in asked)} tested{failed_it})"
        parts += [f"{self.count('refused')} refused", f"{self.count('already fused')} already fused"]
        if failed := self.count("failed"):
            parts.append(f"{failed} failed")
        if advised := self.count("advice"):
            parts.append(f"{_counted(advised, 'place')} with advice")
        if self.ignored:
            parts.append(f"{self.ignored} ignored")
        for noun, cells in (("file", False), ("cell", True)):
            if count := sum((one.cell is not None) is cells for one in self.not_read):
                parts.append(f"{_counted(count, noun)} not read")
        if written := sum(file.written for file in self.files):
            parts.append(f"{_counted(written, 'file')} written")
        return f"{_counted(self.searched, 'file')} searched: {', '.join(parts)}"

    def lines(self) -> Iterator[str]:
        """For people: grouped by file, with a summary in the last line. They may hold what a source holds."""
        for file in self.files:
            yield str(file.path)
            for report in file.sites:
                yield from (f"  {line}" if line else "" for line in _site_lines(report))
            if file.written:
                yield "  written"
            if file.why_not_written is not None:
                yield f"  not written: {file.why_not_written}"
            yield ""
        yield from (*map(str, self.not_read), "") if self.not_read else ()
        yield from (*self.gain.lines(), "") if self.gain is not None else ()
        yield self.summary()


def _site_lines(report: SiteReport) -> Iterator[str]:
    site = report.site
    lines = f"{site.line}-{site.end_line}" if site.end_line > site.line else f"{site.line}"
    if site.cell is not None:
        lines = f"cell {site.cell}, line {lines}"
    reason = f": {site.reason}" if site.reason else ""
    yield f"{lines} {site.symbol}: {site.code} {site.verdict}{reason}"
    if site.advice:
        yield f"    {site.advice}"
    if site.guard is not None:
        yield f"    fused only if {site.guard}; otherwise the old lines run"
    for verification in report.verifications:
        yield f"    {verification.summary()}"
        if verification.kernels:
            yield f"    kernels: {verification.kernels_line()}"
        if verification.unfused:
            yield "    no gain: PyTorch has no fused kernel for this call"
    for assumption in report.assumptions:
        yield f"    assumes that {assumption}"
    for note in site.notes:
        yield f"    note: {note}"
    if report.gain is not None:
        yield from (f"    {line}" for line in report.gain.lines())
    yield from (f"{INDENT[2:]}{line}" for line in report.diff.replace("\r\n", "\n").split("\n")[2:-1])


def _edits(reports: Iterable[SiteReport]) -> set[Edit]:
    return {edit for report in reports for edit in report.site.edits}


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
