"""Patterns of files and folders as `.gitignore` has them: the project's own, and those of git.

They are compiled by RE2, so that a hostile pattern takes no more than linear time.
"""

import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import re2
from pathspec import GitIgnoreSpec

from flashmore.upgrade.project.files import content, exists

MOST_LINES = 3_000
"""Of patterns in a file; RE2 compiles not many more together, and each takes 0.1 ms."""


class InvalidPattern(ValueError):
    """A pattern that matches nothing, or cannot be compiled; the message says why."""


@dataclass(frozen=True)
class Patterns:
    """Patterns relative to a folder.

    Args:
        folder: resolved, as text with a slash at its end.
        spec: the compiled patterns.
    """

    folder: str
    spec: GitIgnoreSpec

    @classmethod
    def of(cls, folder: Path, lines: Sequence[str]) -> Self:
        """Compile the lines of a `.gitignore`, of which git ignores those that are invalid.

        Raises:
            InvalidPattern: they are too many, or take too much memory together.
        """
        if len(lines) > MOST_LINES:
            raise InvalidPattern(f"it has more than {MOST_LINES:,} lines")
        valid = []
        for line in lines:
            with suppress(InvalidPattern):
                check(line)
                valid.append(line)
        try:
            spec = GitIgnoreSpec.from_lines(valid, backend="re2")
        except re2.error as error:
            raise InvalidPattern(f"{len(valid):,} patterns take too much memory: {error}") from None
        return cls(_text(folder, is_folder=True), spec)

    def match(self, path: Path, *, is_folder: bool) -> bool | None:
        """Whether a resolved path matches; None where no pattern says anything of it."""
        text = _text(path, is_folder=is_folder)
        if not text.startswith(self.folder) or text == self.folder:
            return None
        return self.spec.check_file(text[len(self.folder) :]).include


def check(pattern: str) -> None:
    """Refuse an invalid pattern.

    Raises:
        InvalidPattern: it is one; the message says why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of `re`, about what another syntax could mean
            GitIgnoreSpec.from_lines([pattern], backend="re2")
    except (ValueError, re.error, re2.error) as error:
        raise InvalidPattern(f"'{pattern}': {error}") from None


@dataclass(frozen=True)
class LeftOut:
    """What is left out of a folder: what the project excludes, and what git ignores.

    Args:
        exclude: the project's patterns.
        ignored: those of the folder's `.gitignore` and of the files above it, outermost first.
    """

    exclude: Patterns | None = None
    ignored: tuple[Patterns, ...] = ()

    def with_file(self, file: Path, folder: Path) -> Self:
        """The same with the patterns of one more file of git's, which are relative to a folder.

        Raises:
            Unreadable: it cannot be read, see `project/files.py`.
            InvalidPattern: it has too many patterns.
        """
        lines = content(file).decode("utf-8", "replace").splitlines()
        return replace(self, ignored=(*self.ignored, Patterns.of(folder, lines)))

    def has(self, path: Path, *, is_folder: bool) -> bool:
        """Whether a resolved path is left out; of git's files, the innermost that matches decides."""
        if self.exclude is not None and self.exclude.match(path, is_folder=is_folder):
            return True
        found = (level.match(path, is_folder=is_folder) for level in reversed(self.ignored))
        return next((each for each in found if each is not None), False)


def ignore_files_above(folder: Path) -> list[tuple[Path, Path]]:
    """The files above a resolved folder that say what git ignores in it, each with the folder it counts from.

    They are those of its repository, outermost first; a folder outside of one has none.
    """
    root = next((each for each in (folder, *folder.parents) if exists(each / ".git")), None)
    if root is None:
        return []
    inner = [each for each in reversed(folder.parents) if each.is_relative_to(root)]
    files = [(root / ".git" / "info" / "exclude", root), *((each / ".gitignore", each) for each in inner)]
    return [(file, start) for file, start in files if exists(file)]


def _text(path: Path, *, is_folder: bool) -> str:
    """A path with slashes; bytes that are no UTF-8 match what such bytes in a pattern match."""
    text = os.fsencode(path.as_posix()).decode("utf-8", "replace")
    return text + "/" if is_folder and not text.endswith("/") else text
