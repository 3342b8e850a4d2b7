"""Checks before any work that output files can be written."""

import os
import tempfile
from pathlib import Path

from flashmore.errors import StorageError

LONGEST_ENDING = 22
"""Characters added to a file name while the file is being written."""


def require_writable(option: str, path: Path | None, *, folder: bool = False) -> None:
    """Refuse an option's path that cannot be written, though it and its parent folders may be new.

    The check leaves nothing behind.

    Raises:
        StorageError: why it cannot be written.
    """
    why = None if path is None else _why_not(path.absolute(), folder=folder)
    if why is not None:
        wanted = f"a {'folder' if folder else 'file'} for {option} that can be written"
        raise StorageError(wanted, f"{path}: {why}", f"another {option}")


def _why_not(path: Path, *, folder: bool) -> str | None:
    try:
        if not folder and path.is_dir():
            return "it is a folder"
        there = path if folder and path.is_dir() else path.parent
        missing = [path.name]
        while not os.path.lexists(there):
            missing.append(there.name)
            there = there.parent
        if not there.is_dir():
            return f"{there} is no folder"
        with tempfile.TemporaryFile(dir=there):  # permissions do not reveal a read-only disk
            pass
        longest = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        if max(len(os.fsencode(name)) for name in missing) + LONGEST_ENDING > longest:
            return "its name is too long"
    except OSError as error:
        return error.strerror or str(error)
    return None
