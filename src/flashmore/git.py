"""What git has stored, told by reading its files with dulwich.

git itself runs programs that a repository's configuration names (filters, hooks, a file system monitor), and
a cloned repository can bring such a configuration along. Here none is read, and nothing is run.
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
"""Bytes of an index, and of all names in it together."""
MOST_ENTRIES = 500_000
"""Files in an index: so many take about two seconds to read, and few repositories have more than 400,000."""
_LARGEST_LINK = 2**16
"""Bytes of a `.git` that is a file: it names the folder."""


class Unreadable(Exception):
    """A repository that is damaged, or of a format that is not known; the message says why."""


class Indices:
    """What the indices of repositories say of some files; each is read once, and again if it has changed.

    Args:
        paths: the files, absolute, with links resolved. Of others nothing is kept, however many there are.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = set(paths)
        self._read: dict[tuple[Path, Path], tuple[tuple[int, ...], dict[bytes, bytes] | Unreadable]] = {}

    def ids(self, top: Path, folder: Path) -> dict[bytes, bytes]:
        """The id of each file's content, by its name in the working tree.

        The user's git may change an index at any time. It writes a new file and renames it, so that another
        inode or time tells of it: what is kept is only used where reading would give the same. The file's
        state is taken before the content, so a change in between is noticed the next time.

        Raises:
            Unreadable: the index cannot be read.
        """
        try:
            state = _state(folder / "index")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise Unreadable(f"index: {error.strerror or error}") from None
        if (top, folder) not in self._read or self._read[top, folder][0] != state:
            names = {_name(path, top) for path in self._paths if path.is_relative_to(top)}
            found: dict[bytes, bytes] | Unreadable
            try:
                found = _ids_in(_read(folder / "index", LARGEST_INDEX), names)
            except Unreadable as error:
                found = error
            self._read[top, folder] = state, found
        ids = self._read[top, folder][1]
        if isinstance(ids, Unreadable):
            raise ids
        return ids


class Checkout:
    """The working tree of a repository.

    Args:
        path: a file in it, absolute, with links resolved.
        indices: of the files that are asked for; of this one if None.

    Raises:
        Unreadable: the repository around the file cannot be read.
    """

    def __init__(self, path: Path, indices: Indices | None = None) -> None:
        # Looked for anew for each file: a repository may have come into being meanwhile.
        self._top, self.folder = _around(path)
        self._ids: dict[bytes, bytes] = {}
        if self.folder is not None:
            self._ids = (indices or Indices([path])).ids(self._top, self.folder)

    def stores(self, path: Path, data: bytes) -> bool | None:
        """Say whether git could give back a file's content: it is committed, or was added.

        Args:
            path: one of the files that the index was read for.
            data: its bytes; line ends may differ, as `core.autocrlf` makes them.

        Returns:
            None where git does not know the file, or there is no repository.
        """
        found = self._ids.get(_name(path, self._top))
        if found is None:
            return None
        return any(_blob_id(each, len(found)) == found for each in (data, data.replace(b"\r\n", b"\n")))

    def commit(self) -> str | None:
        """The commit that is checked out, as 40 hexadecimal digits; None where there is none."""
        from dulwich.refs import HEADREF, DiskRefsContainer

        if self.folder is None:
            return None
        try:
            return DiskRefsContainer(_common(self.folder), self.folder)[HEADREF].decode()
        except KeyError:
            return None
        except Unreadable:
            raise
        except Exception as error:  # noqa: BLE001 - dulwich meets damage in ways that share no name
            raise Unreadable(f"its HEAD: {error}") from None


def _around(path: Path) -> tuple[Path, Path | None]:
    """The nearest folder above that has a `.git`, and where that leads.

    As git does, it passes over a folder `.git` that is no repository, such as an empty one. A bare repository
    is never taken: a clone may bring one along as a folder, but never a `.git`.
    """
    for top in path.parents:
        git = top / ".git"
        if git.is_dir():
            if _is_repository(git):
                return top, git
        elif os.path.lexists(git):
            words = _read(git, _LARGEST_LINK)
            if not words.startswith(b"gitdir: "):
                raise Unreadable(".git is neither a repository nor the name of one")
            folder = _named(words.removeprefix(b"gitdir: ").rstrip(b"\r\n"), git)
            if not _is_repository(folder):  # git stops here as well, and passes over no such file
                raise Unreadable(".git names a folder that is no repository")
            return top, folder
    return path.parent, None


def _is_repository(folder: Path) -> bool:
    """Whether git takes a folder as a repository, by the same three names that git looks at."""
    head, common = folder / "HEAD", _common(folder)
    if not all(os.access(common / name, os.X_OK) for name in ("objects", "refs")):
        return False
    if head.is_symlink():
        return head.readlink().as_posix().startswith("refs/")
    return os.path.lexists(head) and bool(
        re.match(rb"ref:\s*refs/|[0-9a-fA-F]{40}", _read(head, _LARGEST_LINK))
    )


def _common(folder: Path) -> Path:
    """Where all working trees of a repository have their objects and references."""
    shared = folder / "commondir"
    if not os.path.lexists(shared):
        return folder
    return _named(_read(shared, _LARGEST_LINK).strip(), shared)


def _named(words: bytes, file: Path) -> Path:
    """The folder that a file of a repository names, as seen from the folder that the file lies in."""
    if b"\0" in words:
        raise Unreadable(f"{file.name} has a NUL in the path that it names")
    return file.parent / os.fsdecode(words)


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_regular(path, limit)
    except (RunError, StorageError) as error:
        raise Unreadable(f"{path.name}: {error.found}") from None


def _state(path: Path) -> tuple[int, ...]:
    """What differs after a file was replaced or written."""
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _name(path: Path, top: Path) -> bytes:
    return os.fsencode(path.relative_to(top).as_posix())


def _ids_in(index: bytes, wanted: set[bytes]) -> dict[bytes, bytes]:
    """The id of each wanted file's content in an index, in hexadecimal digits."""
    from dulwich.index import Stage, read_cache_entry, read_index_header

    kind, stream, ids, name, length = _object_format(index), BytesIO(index), {}, b"", 0
    try:
        version, count = read_index_header(stream)
        if count > MOST_ENTRIES:
            raise Unreadable(f"its index: it has {count:,} files, and at most {MOST_ENTRIES:,} are looked at")
        for _ in range(count):
            entry = read_cache_entry(stream, version, name, kind)
            name = entry.name
            length += len(name)
            if length > LARGEST_NAMES:  # version 4 can spell long names in a few bytes
                raise Unreadable("its index: the names in it are too long")
            # A conflict has several contents; none of them is the file's.
            if name in wanted:
                ids[name] = entry.sha if entry.stage() == Stage.NORMAL else b""
    except Unreadable:
        raise
    except Exception as error:  # noqa: BLE001 - dulwich meets damage in ways that share no name
        raise Unreadable(f"its index: {error}") from None
    # Extensions in capitals may be passed over; one in small letters changes what the entries mean.
    while stream.tell() < len(index) - kind.oid_length:
        if not stream.read(4).isupper():
            raise Unreadable("its index is split, sparse, or of another kind that is not known")
        stream.seek(int.from_bytes(stream.read(4), "big"), os.SEEK_CUR)
    return ids


def _object_format(index: bytes) -> "ObjectFormat":
    """Which hash a repository uses, by the checksum that its index ends with; zeros where it has none."""
    from dulwich.object_format import SHA1, SHA256

    for kind, hashed in ((SHA256, hashlib.sha256), (SHA1, hashlib.sha1)):
        checksum = index[-kind.oid_length :]
        if checksum in (hashed(index[: -kind.oid_length]).digest(), bytes(kind.oid_length)):
            return kind
    raise Unreadable("its index is cut off or altered")


def _blob_id(data: bytes, digits: int) -> bytes:
    hashed = hashlib.sha256 if digits == 64 else hashlib.sha1
    return hashed(b"blob %d\0" % len(data) + data).hexdigest().encode()
