"""Reads git's index with dulwich.

git itself runs programs named in a repository's configuration (filters, hooks, a file system monitor), and a
cloned repository can include such a configuration. Here no configuration is read, and nothing is run.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from flashmore.errors import RunError, StorageError
from flashmore.files import read_regular

if TYPE_CHECKING:
    from dulwich.object_format import ObjectFormat

LARGEST_INDEX, LARGEST_NAMES = 2**26, 2**28
"""Most bytes of an index, and of all names in it together."""
MOST_ENTRIES = 500_000
"""Most files in an index, read in about two seconds; few repositories have more than 400,000."""
_LARGEST_LINK = 2**16
"""Most bytes of a `.git` file, which names the folder."""


class Unreadable(Exception):
    """A repository that is damaged or of an unknown format; the message says why."""


class Indices:
    """The index entries of some files, whose paths are absolute, with links resolved.

    Each index is read once, and again if it has changed.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = set(paths)
        self._read: dict[tuple[Path, Path], tuple[tuple[int, ...], dict[bytes, bytes] | Unreadable]] = {}

    def ids(self, top: Path, folder: Path) -> dict[bytes, bytes]:
        """The id of each file's content, by its name in the working tree.

        The user's git may replace an index at any time, which changes inode or mtime. These are read before
        the content, so a change in between is detected the next time.
        """
        try:
            status = (folder / "index").lstat()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise Unreadable(f"index: {error.strerror or error}") from None
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known, ids = self._read.get((top, folder), (None, {}))
        if known != state:
            names = {_name(path, top) for path in self._paths if path.is_relative_to(top)}
            try:
                ids = _ids_in(_read(folder / "index", LARGEST_INDEX), names)
            except Unreadable as error:
                ids = error
            self._read[top, folder] = state, ids
        if isinstance(ids, Unreadable):
            raise ids
        return ids


class Checkout:
    """The working tree of the repository around a file, whose path is absolute, with links resolved.

    `indices` has the entries of all files to look up, by default those of this one.

    Raises:
        Unreadable: the repository cannot be read.
    """

    def __init__(self, path: Path, indices: Indices | None = None) -> None:
        # Searched again for each file: a repository may have been created meanwhile.
        self._top, self._folder = _around(path)
        self._ids: dict[bytes, bytes] = {}
        if self._folder is not None:
            self._ids = (indices or Indices([path])).ids(self._top, self._folder)

    def stores(self, path: Path, data: bytes) -> bool | None:
        """Whether git could restore a file's content, as it was committed or added; None if untracked.

        Line endings may differ, as with `core.autocrlf`.
        """
        found = self._ids.get(_name(path, self._top))
        if found is None:
            return None
        hashed = hashlib.sha256 if len(found) == 64 else hashlib.sha1
        blobs = (b"blob %d\0" % len(each) + each for each in (data, data.replace(b"\r\n", b"\n")))
        return found in (hashed(blob).hexdigest().encode() for blob in blobs)

    def commit(self) -> str | None:
        """The checked-out commit, as 40 hexadecimal digits; None if there is none."""
        from dulwich.refs import HEADREF, DiskRefsContainer

        if self._folder is None:
            return None
        common = _common(self._folder)
        try:
            return DiskRefsContainer(common, self._folder)[HEADREF].decode()
        except KeyError:
            return None
        except Exception as error:  # noqa: BLE001 - dulwich's errors for damage have no common base
            raise Unreadable(f"its HEAD: {error}") from None


def _around(path: Path) -> tuple[Path, Path | None]:
    """The nearest folder above that has a `.git`, and the repository that it names.

    Like git, it skips a folder `.git` that is not a repository, such as an empty one. Bare repositories are
    never used: a clone can include one as a folder, but never a `.git`.
    """
    for top in path.parents:
        git = top / ".git"
        if git.is_dir():
            if _is_repository(git):
                return top, git
        elif os.path.lexists(git):
            words = _read(git, _LARGEST_LINK)
            if not words.startswith(b"gitdir: "):
                raise Unreadable(".git is neither a repository nor a file that names one")
            folder = _named(words.removeprefix(b"gitdir: ").rstrip(b"\r\n"), git)
            if not _is_repository(folder):  # git stops here too, and does not skip such a file
                raise Unreadable(".git names a folder that is not a repository")
            return top, folder
    return path.parent, None


def _is_repository(folder: Path) -> bool:
    """Whether git would accept a folder as a repository, by the three entries that git checks."""
    head, common = folder / "HEAD", _common(folder)
    if not all(os.access(common / name, os.X_OK) for name in ("objects", "refs")):
        return False
    if head.is_symlink():
        return head.readlink().as_posix().startswith("refs/")
    names = rb"ref:\s*refs/|[0-9a-fA-F]{40}"
    return os.path.lexists(head) and re.match(names, _read(head, _LARGEST_LINK)) is not None


def _common(folder: Path) -> Path:
    """The folder with the objects and references common to all working trees."""
    shared = folder / "commondir"
    return _named(_read(shared, _LARGEST_LINK).strip(), shared) if os.path.lexists(shared) else folder


def _named(words: bytes, file: Path) -> Path:
    """The folder named in a file, relative to that file's folder."""
    if b"\0" in words:
        raise Unreadable(f"{file.name} has a NUL in the path that it names")
    return file.parent / os.fsdecode(words)


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_regular(path, limit)
    except (RunError, StorageError) as error:
        raise Unreadable(f"{path.name}: {error.found}") from None


def _name(path: Path, top: Path) -> bytes:
    return os.fsencode(path.relative_to(top).as_posix())


def _ids_in(index: bytes, wanted: set[bytes]) -> dict[bytes, bytes]:
    """The hexadecimal content id of each wanted file in an index."""
    from dulwich.index import Stage, read_cache_entry, read_index_header

    kind, stream, ids, name, length = _object_format(index), BytesIO(index), {}, b"", 0
    try:
        version, count = read_index_header(stream)
        if count > MOST_ENTRIES:
            raise Unreadable(f"it has {count:,} files, and at most {MOST_ENTRIES:,} are supported")
        for _ in range(count):
            entry = read_cache_entry(stream, version, name, kind)
            name = entry.name
            length += len(name)
            if length > LARGEST_NAMES:  # version 4 compresses names: a few bytes can encode long ones
                raise Unreadable("the names in it are too long")
            # A conflicted file has several entries, none of which is its content.
            if name in wanted:
                ids[name] = entry.sha if entry.stage() == Stage.NORMAL else b""
    except Exception as error:  # noqa: BLE001 - dulwich's errors for damage have no common base
        raise Unreadable(f"its index: {error}") from None
    # Upper-case extensions may be ignored; lower-case ones change the meaning of the entries.
    while stream.tell() < len(index) - kind.oid_length:
        if not stream.read(4).isupper():
            raise Unreadable("its index is split, sparse, or of an unknown format")
        stream.seek(int.from_bytes(stream.read(4), "big"), os.SEEK_CUR)
    return ids


def _object_format(index: bytes) -> "ObjectFormat":
    """A repository's hash function, determined by its index's trailing checksum (zeros if it has none)."""
    from dulwich.object_format import SHA1, SHA256

    for kind, hashed in ((SHA256, hashlib.sha256), (SHA1, hashlib.sha1)):
        checksum = index[-kind.oid_length :]
        if checksum in (hashed(index[: -kind.oid_length]).digest(), bytes(kind.oid_length)):
            return kind
    raise Unreadable("its index is damaged")
