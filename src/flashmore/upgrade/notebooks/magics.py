"""Which lines of a cell are Python: magics, shell lines and questions are not.

https://ipython.readthedocs.io/en/stable/interactive/magics.html
"""

import ast
import re
import warnings
from collections.abc import Iterator

from flashmore.upgrade.edits import edited
from flashmore.upgrade.site import Edit

STANDS_IN = "get_ipython()"
"""What a magic or a shell line is for the search: a call of a function whose effects are unknown."""
_PYTHON_MAGICS = {"capture", "debug", "prun", "time", "timeit"}
"""Cell magics that run the rest of their cell as Python in the notebook's own process."""
_CELL_MAGIC = re.compile(r"\s*%%(\S*)[^\n]*")
_ESCAPED_LINE = r"(?:\\\r?\n|[^\n])*"
_MAGIC = re.compile(
    r"(?P<before>[ \t]*)(?:"
    rf"(?P<target>[^\W\d][\w., \t\[\]*]*=[ \t]*)?[%!](?!=){_ESCAPED_LINE}"
    r"|\?[^\n]*|%{0,2}[^\W\d][\w.*\[\]-]*\?{1,2}[ \t]*(?=\r?\n|$)"
    # In a notebook every cell may begin with one; in the joined source it would be an error.
    r"|from[ \t]+__future__[ \t][^\n]*"
    r")"
)
"""A line that is no Python, where a logical line begins."""
_TOKEN = re.compile(
    r"'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\"|'(?:\\.|[^\\'\n])*'|\"(?:\\.|[^\\\"\n])*\""
    r"|#[^\n]*|\\\r?\n|[()\[\]{}\n]|[^'\"#\\()\[\]{}\n]+|.",
    re.DOTALL,
)


class NotPython(Exception):
    """A code cell that holds something else; the message says what."""


def magics(text: str) -> tuple[Edit, ...]:
    """What stands in for the lines of a cell that are no Python.

    Raises:
        NotPython: the cell is something else.
    """
    found: list[Edit] = []
    at = 0
    while cell_magic := _CELL_MAGIC.match(text, at):
        if cell_magic[1] not in _PYTHON_MAGICS:
            raise NotPython(f"it is a `%%{cell_magic[1]}` cell, which is not searched")
        found.append(Edit(cell_magic.start() + cell_magic[0].index("%"), cell_magic.end(), STANDS_IN))
        at = cell_magic.end()
    if found or "__future__" in text or _why_not_compiled(text) is not None:
        found += _lines_not_python(text, at)
        if (why_not := _why_not_compiled(edited(text, found))) is not None:
            raise NotPython(why_not)
    return tuple(found)


def _why_not_compiled(text: str) -> str | None:
    """What is wrong with the text of a cell; IPython takes an `await` outside of functions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as error:
        line = f" in line {error.lineno}" if error.lineno else ""
        return f"it is not valid for this version of Python: {error.msg}{line}"
    except (RecursionError, MemoryError):
        return "it is nested too deeply to be parsed"
    except ValueError as error:
        return f"it cannot be parsed: {error}"
    return None


def _lines_not_python(text: str, at: int) -> Iterator[Edit]:
    """Magics, shell lines and questions, outside of strings, brackets and continued lines."""
    depth, begins = 0, at == 0
    while at < len(text):
        if begins and depth == 0 and (magic := _MAGIC.match(text, at)):
            start = magic.end("target" if magic["target"] else "before")
            yield Edit(start, magic.end(), STANDS_IN + "\n" * text.count("\n", start, magic.end()))
            at, begins = magic.end(), False
            continue
        token = _TOKEN.match(text, at)
        assert token is not None
        depth = max(0, depth + (token[0] in ("(", "[", "{")) - (token[0] in (")", "]", "}")))
        at, begins = token.end(), token[0] == "\n"
