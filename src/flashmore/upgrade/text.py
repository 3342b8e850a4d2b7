"""Positions in a source text: what `ast` calls line and column, as offsets of characters.

The search reads Python with the standard `ast`, not with LibCST: it parses every syntax of the Python that
runs it, its nodes carry exact spans, and an edit of characters leaves every other character as it was.
"""

import ast
import re
import textwrap
import tokenize
from bisect import bisect_right
from io import StringIO

from flashmore.upgrade.budget import step

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # as Python counts lines: str.splitlines() finds more
LONGEST_SHOWN = 60
"""Characters of an expression in a message."""
_COORDINATES = ("lineno", "col_offset", "end_lineno", "end_col_offset")


class Text:
    """A decoded source and the spans of its syntax tree."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines = _LINE.findall(source)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))

    def offset(self, line: int, column: int) -> int:
        """The character offset of a line (from 1) and a column in UTF-8 bytes, as `ast` counts them."""
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        if text.isascii():
            return self.starts[line - 1] + column
        step(1 + len(text) // 100)
        return self.starts[line - 1] + len(text.encode()[:column].decode(errors="ignore"))

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where a node starts and ends."""
        line, column, end_line, end_column = (getattr(node, name) for name in _COORDINATES)
        return self.offset(line, column), self.offset(end_line, end_column)

    def of(self, node: ast.AST) -> str:
        """The node as the user wrote it."""
        start, end = self.span(node)
        return self.source[start:end]

    def whole_lines(self, node: ast.AST) -> tuple[int, int]:
        """The span of all lines that a node touches, line ends included."""
        return self.starts[node.lineno - 1], self.starts[node.end_lineno]  # type: ignore[attr-defined]

    def offset_line(self, offset: int) -> int:
        """The index of the line that starts at, or holds, an offset."""
        return bisect_right(self.starts, offset) - 1

    def indent(self, node: ast.AST) -> str:
        """The white space in front of the line that a node starts in."""
        return self.indent_at(self.starts[getattr(node, "lineno", 1) - 1])

    def indent_at(self, offset: int) -> str:
        """The white space at an offset."""
        line = self.source[offset : self.starts[self.offset_line(offset) + 1]]
        return line[: len(line) - len(line.lstrip(" \t\f"))]

    @property
    def newline(self) -> str:
        """The line end that the file uses."""
        first = self.lines[0] if self.lines else ""
        return "\r\n" if first.endswith("\r\n") else "\r" if first.endswith("\r") else "\n"


def comments(lines: str) -> list[str]:
    """The comments of some lines."""
    step(1 + len(lines) // 5)
    found = []
    try:
        for token in tokenize.generate_tokens(StringIO(textwrap.dedent(lines)).readline):
            if token.type == tokenize.COMMENT:
                found.append(token.string)
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return found
    return found


def shown(node: ast.AST) -> str:
    """An expression in one line for a message, with an ellipsis where it is cut."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"
