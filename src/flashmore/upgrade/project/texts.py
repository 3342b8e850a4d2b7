"""What the files of a project hold, each read once."""

import re
from collections.abc import Iterable, Set
from functools import cached_property
from pathlib import Path

from flashmore.upgrade.notebooks.notebook import is_notebook, source_of
from flashmore.upgrade.project.files import Unreadable, content

_DECORATOR = re.compile(rb"^[ \t]*@.*", re.MULTILINE)
_WORD = re.compile(rb"[A-Za-z_]\w*")


class Texts:
    """The bytes of files, or those of a notebook's Python; nothing for those that cannot be read.

    Args:
        files: the files.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = sorted(files)
        self.data: dict[Path, bytes] = {}

    def of(self, path: Path) -> bytes:
        """What a file holds."""
        if path not in self.data:
            try:
                self.data[path] = source_of(path).encode() if is_notebook(path) else content(path)
            except Unreadable:
                self.data[path] = b""
        return self.data[path]

    @cached_property
    def decorators(self) -> set[bytes]:
        """Every word in a line that may be a decorator."""
        lines = (line for path in self.files for line in _DECORATOR.findall(self.of(path)))
        return {word for line in lines for word in _WORD.findall(line)}

    def matching(self, pattern: re.Pattern[bytes]) -> list[Path]:
        """The files in which a pattern occurs."""
        return [path for path in self.files if pattern.search(self.of(path))]

    def mentioning(self, names: Set[str]) -> list[Path]:
        """The files in which any of some words occurs."""
        words = [name.encode() for name in sorted(names)]
        pattern = re.compile(rb"\b(?:" + b"|".join(map(re.escape, words)) + rb")\b")
        near = [path for path in self.files if any(word in self.of(path) for word in words)]
        return [path for path in near if pattern.search(self.of(path))]
