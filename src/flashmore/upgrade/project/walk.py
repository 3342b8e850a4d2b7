"""The Python files of paths, and of the project that a file belongs to."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from flashmore.upgrade.project.files import Unreadable, exists, folder_of, is_folder, real
from flashmore.upgrade.project.patterns import InvalidPattern, LeftOut, Patterns, ignore_files_above
from flashmore.upgrade.site import NotRead

MOST_FILES = 20_000
"""So many files of a project are looked at around those that are searched."""
MOST_ENTRIES = 2_000_000
"""So many names in the folders below a path are looked at; a large set of images has 1.3 million."""
MOST_LINKS = 10_000
"""So many links below a path are looked at: to tell where these lead takes half a second."""
DEEPEST = 100
"""So many folders below a path may lie in each other."""
_MARKERS = (".git", "pyproject.toml", "setup.py", "setup.cfg")
_SKIPPED = {
    ".git", ".hg", ".svn", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".tox", ".nox",
    ".ipynb_checkpoints",
}  # fmt: skip
_OTHERS = ("pyvenv.cfg", "conda-meta")
"""What lies in the root of an environment: other people's packages, unless a path names something in it."""


def python_files(
    paths: Iterable[str | os.PathLike[str]],
    suffixes: tuple[str, ...] = (".py",),
    exclude: Patterns | None = None,
    *,
    force_exclude: bool = False,
) -> tuple[list[Path], list[NotRead]]:
    """Every Python file of the paths, each once, and what lies in their folders and is not read.

    A path itself may be a link. A link in a folder is followed if it leads to a file in one of the folders
    that are walked; none that leads out of all paths is. Environments that lie in a folder are not walked,
    and what git ignores there or the project excludes is left out.

    Args:
        paths: files, whatever they are called, and folders.
        suffixes: how the names of a folder's files end.
        exclude: what is left out of folders.
        force_exclude: whether paths are left out, too, and not only what lies in them.
    """
    given = [Path(path) for path in paths]
    walk = _Walk([real(path) for path in given], suffixes, exclude=exclude, respect_gitignore=True)
    for path in given:
        if force_exclude and exclude is not None and exclude.match(real(path), is_folder=is_folder(path)):
            continue
        if is_folder(path):
            walk.folder(path)
        else:
            walk.found.setdefault(real(path), path)
    return walk.files(), walk.not_read


def project_files(path: Path, most: int = MOST_FILES) -> tuple[list[Path], list[NotRead]]:
    """The files of the project around a path, and what of it is not read.

    The project is the nearest folder above with a `.git`, `pyproject.toml`, `setup.py` or `setup.cfg`. Where
    there is none: the package that a file is in, and what lies beside it.
    """
    here, root = folder_of(path), root_of(path)
    if root is not None:
        walk = _Walk([root], (".py",), most)
        walk.folder(root)
        return walk.files(), walk.not_read
    top = around_package(here)
    walk = _Walk([top], (".py",), most)
    walk.folder(top, below=False)
    package = top.joinpath(*here.relative_to(top).parts[:1])
    if package != top:
        walk.folder(package)
    return walk.files(), walk.not_read


def root_of(path: Path) -> Path | None:
    """The project's folder around a path: the nearest with a `.git`, `pyproject.toml` or the like."""
    here = folder_of(path)
    folders = (here, *here.parents)
    return next((each for each in folders if any(exists(each / name) for name in _MARKERS)), None)


def around_package(folder: Path) -> Path:
    """The folder around the outermost package that a folder belongs to; the folder itself without one."""
    while (folder / "__init__.py").exists() and folder.parent != folder:
        folder = folder.parent
    return folder


class _Walk:
    """Walks folders, each once, and follows no link to a folder: one that stays inside leads to nothing new.

    Args:
        inside: resolved paths; what is in none of them is not read.
        suffixes: how the names of files end.
        most: how many files are looked for; None for all.
        exclude: what is left out.
        respect_gitignore: whether what git ignores is left out.
    """

    def __init__(
        self,
        inside: Sequence[Path],
        suffixes: tuple[str, ...],
        most: int | None = None,
        exclude: Patterns | None = None,
        *,
        respect_gitignore: bool = False,
    ) -> None:
        self.found: dict[Path, Path] = {}
        """By where it leads: a file as it was named."""
        self.not_read: list[NotRead] = []
        self._inside = inside
        self._suffixes = suffixes
        self._most = most
        self._exclude = exclude
        self._respect_gitignore = respect_gitignore
        self._walked: set[Path] = set()
        self._links: list[tuple[Path, Path]] = []
        self._entries_left = 0
        self._links_left = 0

    def files(self) -> list[Path]:
        """Every file that was found, and after them what links lead to beside them."""
        for path, target in self._links:
            if is_folder(target):
                searched = target in self._walked
            else:  # one that leads to no file is told apart when it is read
                searched = target.parent in self._walked or target in self.found or not target.is_file()
                if searched:
                    self.found.setdefault(target, path)
            if not searched:  # an environment, or a folder that is never searched
                self._leave(
                    path, f"it is a link to {target}, which is not searched; give that path to search it"
                )
        self._links = []
        return list(self.found.values())

    def folder(self, top: Path, *, below: bool = True) -> None:
        """Look for files in a folder, and in those below it."""
        self._entries_left, self._links_left = MOST_ENTRIES, MOST_LINKS
        left_out = self._left_out_of(real(top))
        ahead = [(top, real(top), 0, True, left_out)]
        while ahead:
            path, at, depth, walk, left_out = ahead.pop()
            if not walk:
                if self._most is not None and len(self.found) >= self._most:
                    return self._leave(top, f"it has more than {self._most:,} files; the others are skipped")
                self.found.setdefault(at, path)
            elif depth > DEEPEST:
                self._leave(path, f"it lies more than {DEEPEST} folders deep; give its path to search it")
            elif at not in self._walked:
                names, inner = self._names(path, at, left_out, outermost=depth == 0, below=below)
                if self._entries_left < 0:
                    valid = "give paths of folders in it, or --exclude folders with data"
                    found = f"it has more than {MOST_ENTRIES:,} files and folders"
                    return self._leave(top, f"{found}; {path} and what follows are not searched; {valid}")
                ahead += [
                    (path / name, at / name, depth + 1, leads_on, inner)
                    for name, leads_on in sorted(names, reverse=True)
                ]
        return None

    def _left_out_of(self, top: Path) -> LeftOut:
        """What is left out of a folder of the paths, whose own name is not asked for."""
        exclude, git = LeftOut(self._exclude), LeftOut()
        if self._respect_gitignore:
            for file, start in ignore_files_above(top):
                git = self._with_file(git, file, start)
        exclude, git = (LeftOut() if each.has(top, is_folder=True) else each for each in (exclude, git))
        return LeftOut(exclude.exclude, git.ignored)

    def _with_file(self, left_out: LeftOut, file: Path, folder: Path) -> LeftOut:
        try:
            return left_out.with_file(file, folder)
        except (Unreadable, InvalidPattern) as error:
            self._leave(file, f"its patterns are not applied: {error}")
            return left_out

    def _names(
        self, folder: Path, at: Path, left_out: LeftOut, *, outermost: bool, below: bool
    ) -> tuple[list[tuple[str, bool]], LeftOut]:
        """The names of a folder's files and folders, and which are folders; none where it is an environment.

        Its links are looked at, and kept for the end. Also returns what is left out of the folders in it.
        """
        names, links = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._entries_left -= 1
                    if self._entries_left < 0 or (entry.name in _OTHERS and not outermost):
                        return [], left_out
                    if entry.name == ".gitignore" and self._respect_gitignore:
                        left_out = self._with_file(left_out, folder / entry.name, at)
                    if entry.is_symlink():
                        links.append(entry.name)
                    elif entry.is_dir(follow_symlinks=False):
                        if below and entry.name not in _SKIPPED:
                            names.append((entry.name, True))
                    elif entry.name.endswith(self._suffixes):
                        names.append((entry.name, False))
        except OSError as error:
            self._leave(folder, f"it is a folder that cannot be read: {error.strerror or error}")
            return [], left_out
        self._walked.add(at)
        for name in sorted(links):
            path = folder / name
            if left_out.has(at / name, is_folder=is_folder(path)):
                continue
            self._links_left -= 1
            if self._links_left < 0:
                if self._links_left == -1:  # told once for all that follow
                    found = f"it is one of more than {MOST_LINKS:,} links, and the rest are skipped"
                    self._leave(path, f"{found}; give the paths of their targets to search them")
                break
            if (below and name not in _SKIPPED) if is_folder(path) else name.endswith(self._suffixes):
                self._see_link(path, real(at / name))
        return [each for each in names if not left_out.has(at / each[0], is_folder=each[1])], left_out

    def _see_link(self, path: Path, target: Path) -> None:
        if not any(target.is_relative_to(root) for root in self._inside):
            out = f"it is a link to {target}, which is outside the given paths"
            self._leave(path, f"{out}; give that path to search it")
        else:
            self._links.append((path, target))

    def _leave(self, path: Path, reason: str) -> None:
        self.not_read.append(NotRead(str(path), reason))
