"""Write a rewritten file: whole or not at all, and never over something that was not read.

Outside the edits every byte stays: encoding, byte order mark, line endings, a missing last line end.
"""

import ast
import errno
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from flashmore.errors import StorageError, UsageError
from flashmore.files import sync
from flashmore.git import Checkout, Indices, Unreadable
from flashmore.upgrade.project import files
from flashmore.upgrade.project.files import content
from flashmore.upgrade.site import Searched


def write(found: Searched, new: bytes, *, force: bool = False, indices: Indices | None = None) -> None:
    """Replace a file by its changed bytes, in one step, with its permissions, owner and extended attributes.

    Args:
        found: the file as it was read; a symbolic link is followed, and stays a link.
        new: the bytes of the whole new file.
        force: write even what differs from what git has committed.
        indices: of all files that are to be written, so that one index is read once for them.

    Raises:
        UsageError: the file has changed since it was read, is read-only, has several names, differs from what
            git has committed, belongs to somebody else, or the new text is no Python.
        StorageError: the disk refused.
    """
    require_python(found, new)
    path = Path(found.path)
    target = path.resolve()
    try:
        status = _require_unchanged(target, found)
        if not force:
            _require_stored(target, found.data, indices)
        with _beside(target) as temporary:
            temporary.write_bytes(new)
            _keep_attributes(target, status, temporary, path)
            with temporary.open("rb") as file:
                sync(file.fileno())
            _require_unchanged(target, found, status)
            temporary.replace(target)
    except OSError as error:
        raise StorageError(
            f"to write {path}", str(error), "free disk space and a folder with write permission"
        ) from None


def require_python(found: Searched, new: bytes) -> None:
    """Refuse the bytes of a changed Python file that do not parse; those of a notebook are valid.

    Raises:
        UsageError: they are no Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about someone's source, not about the rewrite
            if found.notebook is None:
                ast.parse(new)
    except (SyntaxError, ValueError) as error:
        wanted, why = f"valid Python in the rewritten {found.path}", f"it would not parse: {error}"
        raise UsageError(wanted, why, "leave the file as it is") from None


def _require_unchanged(target: Path, found: Searched, before: os.stat_result | None = None) -> os.stat_result:
    """Refuse a file that is not the one that was read, or cannot be replaced as it is."""
    path = found.path
    try:
        data, status = content(target, max(files.LARGEST, len(found.data))), target.lstat()
    except (files.Unreadable, OSError):
        raise UsageError(
            f"{path} as it was read", "it can no longer be read", "run the same command again"
        ) from None
    if data != found.data or (before is not None and not os.path.samestat(before, status)):
        raise UsageError(f"{path} as it was read", "it has changed since", "run the same command again")
    if not status.st_mode & 0o222 or not os.access(target, os.W_OK):
        raise UsageError(
            f"to write {path}", "it is read-only", f"chmod u+w {path}, then run the same command again"
        )
    if status.st_nlink > 1:
        # Another name may belong to another project, or to a package manager's store.
        valid = "a separate copy: the other names would keep the old file"
        raise UsageError(f"{path} without hard links", f"{status.st_nlink} hard links to it", valid)
    return status


def _require_stored(target: Path, data: bytes, indices: Indices | None) -> None:
    """Refuse a file with changes that git would not give back."""
    try:
        stored = Checkout(target, indices).stores(target, data)
    except Unreadable as error:
        found = f"its repository cannot be read: {error}"
        raise UsageError(
            f"{target.name} as stored in git", found, "--force to write without checking git"
        ) from None
    if stored is False:
        raise UsageError(
            f"{target.name} without uncommitted changes",
            "it differs from what was last added or committed",
            "commit it first, or use --force",
        )


def _keep_attributes(target: Path, found: os.stat_result, temporary: Path, path: Path) -> None:
    """Give a new file the old one's owner, group, permissions and extended attributes (ACLs among them)."""
    own = temporary.stat()
    if (own.st_uid, own.st_gid) != (found.st_uid, found.st_gid):
        try:
            os.chown(temporary, found.st_uid, found.st_gid)
        except PermissionError:
            owner = f"it belongs to user {found.st_uid} and group {found.st_gid}"
            raise UsageError(f"to write {path} and keep its owner", owner, "a file that you own") from None
    temporary.chmod(stat.S_IMODE(found.st_mode))
    given = _extended_attributes(temporary)
    for name, value in _extended_attributes(target).items():
        if given.get(name) == value:
            continue
        try:
            os.setxattr(temporary, name, value)
        except OSError as error:
            why = f"{name}: {error.strerror}"
            valid = "a file without them, or a user who may set them"
            raise UsageError(f"to write {path} with its extended attributes", why, valid) from None


def _extended_attributes(path: Path) -> dict[str, bytes]:
    """Nothing where the system or the file system has none (Python reads them on Linux alone)."""
    if sys.platform != "linux":
        return {}
    try:
        return {name: os.getxattr(path, name) for name in os.listxattr(path)}
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new file in the same folder; gone at the end, unless it was renamed."""
    with NamedTemporaryFile(
        dir=target.parent, prefix=f".{target.name}.", suffix=".new", delete=False
    ) as made:
        temporary = Path(made.name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
