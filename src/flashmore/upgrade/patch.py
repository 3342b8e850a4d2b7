"""Changes of a file as a patch for `git apply`."""

import difflib
import os
from pathlib import Path

CONTEXT_LINES = 3
QUOTED = {"\a": "\\a", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\v": "\\v", "\f": "\\f", "\r": "\\r"}
QUOTED |= {'"': '\\"', "\\": "\\\\"}


def patch(before: str, after: str, path: Path) -> str:
    """A unified diff that `git apply` and `patch -p1` take in the working directory; empty for no change."""
    if before == after:
        return ""
    name = os.path.relpath(path).replace(os.sep, "/")
    lines = difflib.unified_diff(
        _lines_of(before), _lines_of(after), _named(f"a/{name}"), _named(f"b/{name}"), n=CONTEXT_LINES
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _lines_of(text: str) -> list[str]:
    """Lines as git counts them: only \\n ends one."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + lines[-1:] if lines[-1] else [x + "\n" for x in lines[:-1]]


def _named(name: str) -> str:
    """A name as git writes it in a patch: quoted where it must be, ended by a tab where it holds spaces."""
    if any(character in QUOTED or ord(character) < 32 for character in name):
        return '"' + "".join(QUOTED.get(c, c if ord(c) >= 32 else f"\\{ord(c):03o}") for c in name) + '"'
    return f"{name}\t" if " " in name else name
