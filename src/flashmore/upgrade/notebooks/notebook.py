"""A Jupyter notebook as one Python source, and edits of that source as edits of the notebook's bytes.

The code cells are joined in order, so that a cell sees what those above it define. Magics and shell lines
become calls of `get_ipython()`, which is how IPython runs them: their effects are unknown. Nothing is run.

nbformat's library parses and dumps the whole file, which changes its escapes and its indentation. Here the
JSON is read for the places of the cells' sources, and only strings that hold changed lines are written anew.

The format: https://nbformat.readthedocs.io/en/latest/format_description.html
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flashmore.errors import UsageError
from flashmore.upgrade.edits import edited
from flashmore.upgrade.notebooks.magics import NotPython, magics
from flashmore.upgrade.notebooks.spans import read_spans
from flashmore.upgrade.notebooks.value import Value
from flashmore.upgrade.project.files import LARGEST, Unreadable, content, decoded
from flashmore.upgrade.site import Edit, NotRead, Site
from flashmore.upgrade.source.scopes import MODULE
from flashmore.upgrade.text import Text

SUFFIX = ".ipynb"
LARGEST_NOTEBOOK = 2**27
"""Bytes of the largest notebook that is read, with its outputs; the code cells may have `LARGEST` of them."""
MOST_PARTS = 5_000_000
"""So many lists and objects may begin in a notebook: in memory an empty one is twenty times as large."""
ADVICE = "move it out of these lines"
_WORDS = re.compile(r"[^\W\d]\w*")
_LINES = re.compile(r"`[^`]*`|\blines? (\d{1,7}(?:(?:, |-)\d{1,7})*)\b")


class NotEditable(Exception):
    """An edit that no single cell can take; the message says why."""


@dataclass(frozen=True)
class Cell:
    """A code cell that is searched."""

    number: int
    """Its place among all cells of the notebook, from 1."""
    text: str
    """What it holds, as the notebook shows it."""
    magics: tuple[Edit, ...]
    """What is put in the place of its lines that are no Python."""
    start: int
    """Where it starts in the notebook's source."""
    span: tuple[int, int]
    """The bytes of its `source` in the file."""

    @property
    def whole(self) -> str:
        """Its text with an end of the last line, which the last line of a cell usually lacks."""
        return self.text if self.text.endswith("\n") else f"{self.text}\n"

    @cached_property
    def source(self) -> str:
        """Its part of the notebook's source."""
        return edited(self.whole, self.magics)

    def own(self, edit: Edit) -> Edit:
        """An edit of the notebook's source as one of `whole`.

        Raises:
            NotEditable: it would change a line that is no Python, or go on in another cell.
        """
        start, end, shift = edit.start - self.start, edit.end - self.start, 0
        if end > len(self.source):
            raise NotEditable("its lines lie in several cells")
        for magic in self.magics:
            at = magic.start + shift
            if at + len(magic.text) <= start:
                shift += len(magic.text) - (magic.end - magic.start)
            elif at < end or (at == end and self.text.startswith("%%", magic.start)):
                raise NotEditable("a magic or a shell command lies among its lines")
        return Edit(start - shift, end - shift, edit.text)


@dataclass(frozen=True)
class Notebook:
    """The Python of a notebook."""

    source: str
    """The code cells in order, each with a line end."""
    cells: tuple[Cell, ...]
    left_out: tuple[tuple[int, str], ...]
    """Code cells that are not Python: the number of each, and why."""

    @cached_property
    def _starts(self) -> list[int]:
        return [cell.start for cell in self.cells]

    @cached_property
    def _text(self) -> Text:
        return Text(self.source)

    def not_read(self, path: str) -> list[NotRead]:
        """The cells that were left out of the notebook at a path."""
        return [NotRead(path, reason, number) for number, reason in self.left_out]

    def place(self, line: int) -> tuple[int, int]:
        """The number of the cell and the line in it, of a line of the source; all count from 1."""
        offset = self._text.starts[line - 1]
        cell = self.cells[bisect_right(self._starts, offset) - 1]
        return cell.number, line - self._text.offset_line(cell.start)

    def in_source(self, number: int, line: int) -> int:
        """The line of the source that is a line of a cell."""
        start = next(cell.start for cell in self.cells if cell.number == number)
        return line + self._text.offset_line(start)

    def placed(self, site: Site) -> Site:
        """A place with its cell, and with lines that count in it; refused where its edits cannot be made."""
        number, line = self.place(site.line)
        if site.edits:
            try:
                self.changed(site.edits)
                self._check_own_lines(site)
            except NotEditable as error:
                site = site.refused(str(error), ADVICE)
        return replace(
            site,
            cell=number,
            line=line,
            end_line=self.place(site.end_line)[1],
            reason=self.worded(site.reason),
            advice=self.worded(site.advice),
            assumptions=tuple(map(self.worded, site.assumptions)),
            notes=tuple(map(self.worded, site.notes)),
        )

    def _check_own_lines(self, site: Site) -> None:
        """Whether lines outside of all functions are of one cell, and no magic reads what they bind."""
        first, last = self.place(site.line)[0], self.place(site.end_line)[0]
        if first != last:
            raise NotEditable("its lines lie in several cells")
        words = {*_WORDS.findall("".join(self._text.lines[site.line - 1 : site.end_line]))}
        texts = (cell.whole[each.start : each.end] for cell in self.cells for each in cell.magics)
        magic = {word for text in texts for word in _WORDS.findall(text)}
        if site.symbol == MODULE and (self.left_out or words & magic):
            raise NotEditable("a magic or a cell that is no Python may read its names")

    def worded(self, text: str) -> str:
        """A message about lines of the source, with the cells that they are in."""

        def in_cells(found: re.Match[str]) -> str:
            parts = re.split(r"(, |-)", found[1] or "0")
            lines = [int(part) for part in parts[::2]]
            if not all(0 < line <= len(self._text.lines) for line in lines):
                return found[0]
            places = [self.place(line) for line in lines]
            if len({number for number, _ in places}) > 1:
                return ", ".join(f"cell {number}, line {line}" for number, line in places)
            parts[::2] = [str(line) for _, line in places]
            return f"cell {places[0][0]}, line{'s' * (len(places) > 1)} {''.join(parts)}"

        return _LINES.sub(in_cells, text)

    def changed(self, edits: Iterable[Edit]) -> list[tuple[Cell, list[Edit]]]:
        """The cells that some edits of the source change, each with its own edits of `whole`.

        Raises:
            NotEditable: an edit belongs to no single cell.
        """
        found: dict[int, list[Edit]] = {}
        for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
            index = bisect_right(self._starts, edit.start) - 1
            if edit.start == edit.end == self._starts[index] and index > 0:
                index -= 1  # an import comes after the last one: at the end of its cell
            found.setdefault(index, []).append(self.cells[index].own(edit))
        return [(self.cells[index], own) for index, own in found.items()]

    def encoded(self, data: bytes, edits: Iterable[Edit]) -> bytes:
        """The notebook with some edits of its source made; every other byte stays.

        Args:
            data: the file that was read.
            edits: of places that `placed` has accepted.

        Raises:
            UsageError: the result would not read as the edited source.
        """
        edits = set(edits)
        result, at = [], 0
        for cell, own in self.changed(edits):
            start, end = cell.span
            result += [data[at:start], Value(data[start:end].decode()).edited(cell.whole, own).encode()]
            at = end
        new = b"".join([*result, data[at:]])
        if read_notebook(new).source != edited(self.source, edits):
            wanted, found = "a notebook that reads as its rewritten cells", "it would read differently"
            raise UsageError(wanted, found, "leave the file as it is")
        return new


def is_notebook(path: Path) -> bool:
    """Whether a file is a notebook by its name."""
    return path.suffix.lower() == SUFFIX


def source_of(path: Path) -> str:
    """The Python of a file or of a notebook.

    Raises:
        Unreadable: it is no file that can be read.
    """
    return notebook_at(path).source if is_notebook(path) else decoded(content(path))[0]


def notebook_at(path: Path) -> Notebook:
    """A notebook as it is now.

    Raises:
        Unreadable: it is no file that can be read, or no notebook of Python.
    """
    return read_notebook(content(path, LARGEST_NOTEBOOK))


def read_notebook(data: bytes) -> Notebook:
    """The Python of a notebook's code cells.

    Raises:
        Unreadable: it is no notebook of format 4, or of another language.
    """
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is not UTF-8, as notebooks are: byte {error.start + 1:,}") from None
    if (parts := data.count(b"[") + data.count(b"{")) > MOST_PARTS:
        raise Unreadable(f"it has {parts:,} lists and objects, and at most {MOST_PARTS:,} are read")
    try:
        top = read_spans(data.decode("latin-1"))  # one character a byte: JSON's own characters are all ASCII
    except json.JSONDecodeError as error:
        raise Unreadable(f"it is not a valid notebook: {error.msg} in line {error.lineno}") from None
    except RecursionError:
        raise Unreadable("it is not a valid notebook: its JSON is nested too deeply") from None
    _require_python_4(top)
    cells: list[Cell] = []
    left_out: list[tuple[int, str]] = []
    start = 0
    for number, found in enumerate(top["cells"], start=1):
        if found.get("cell_type") != "code":
            continue
        span = found.get("source", (0, 0))
        text = _joined(data[slice(*span)], number)
        if not text.strip():
            continue
        try:
            cell = Cell(number, text, magics(text), start, span)
        except NotPython as error:
            left_out.append((number, str(error)))
            continue
        cells.append(cell)
        start += len(cell.source)
        if start > LARGEST:
            raise Unreadable(f"its code cells have more than {LARGEST:,} characters, and no more are read")
    return Notebook("".join(cell.source for cell in cells), tuple(cells), tuple(left_out))


def _require_python_4(top: Mapping[str, Any]) -> None:
    version = top.get("nbformat")
    if "worksheets" in top or (isinstance(version, int) and version < 4):
        advice = "`jupyter nbconvert --to notebook --inplace` converts it"
        raise Unreadable(f"it is a notebook of format {version}, and only format 4 is read; {advice}")
    if version != 4 or "cells" not in top:
        found = f"its nbformat is {version!r}" if "nbformat" in top else "it has no nbformat"
        raise Unreadable(f"it is not a notebook of format 4: {found if version != 4 else 'it has no cells'}")
    for part, key in (("language_info", "name"), ("kernelspec", "language")):
        match top.get("metadata"):
            case dict(metadata) if isinstance(named := metadata.get(part), dict) and named.get(key):
                if "python" not in (language := str(named[key])).lower():
                    raise Unreadable(f"it is a notebook of {language}, and only Python is searched")


def _joined(value: bytes, number: int) -> str:
    """A cell's text, from the JSON of its `source`."""
    source = json.loads(value.decode() or "null")
    lines = source if isinstance(source, list) else [source]
    if not all(isinstance(line, str) for line in lines):
        raise Unreadable(f"it is not a valid notebook: cell {number} has no source of strings")
    return "".join(lines)
