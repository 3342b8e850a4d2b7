"""Write a rewritten file: whole or not at all, and never over something that was not read.

Outside the edits every byte stays: encoding, byte order mark, line endings, a missing last line end.
"""

import ast
import codecs
import io
import os
import subprocess
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from flashmore.errors import StorageError, UsageError

GIT_SECONDS = 20
NO_REPOSITORY = "not a git repository"


@dataclass(frozen=True)
class SourceFile:
    """A Python file as it was read."""

    path: Path
    raw: bytes
    encoding: str
    """As Python finds it: by the byte order mark, the comment in the first two lines, or UTF-8."""

    @property
    def text(self) -> str:
        """The decoded source without byte order mark; line ends as they are in the file."""
        return self.raw.decode(self.encoding)

    def encoded(self, text: str) -> bytes:
        """A changed text in the file's encoding, with its byte order mark."""
        return text.encode(self.encoding)


def read_source(path: Path) -> SourceFile:
    """Read a Python file.

    Raises:
        OSError: it cannot be read.
        SyntaxError: its encoding comment names none, or contradicts the byte order mark.
        UnicodeDecodeError: its bytes are not in its encoding.
    """
    raw = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    source = SourceFile(path, raw, codecs.lookup(encoding).name)
    source.raw.decode(source.encoding)
    return source


def write_source(source: SourceFile, text: str, *, force: bool = False) -> None:
    """Replace a file by a changed text, in one step, with its permissions.

    Args:
        source: the file as it was read; a link is followed, and stays a link.
        text: the whole new text.
        force: write even what git shows as modified.

    Raises:
        UsageError: the file has changed since it was read, is read-only, is shown as modified by git, or the
            new text is no Python.
        StorageError: the disk refused.
    """
    target = source.path.resolve()
    new = source.encoded(text)
    _require_python(new, source.path)
    try:
        _require_unchanged(target, source)
        if not force:
            _require_committed(target)
        with _beside(target) as temporary:
            temporary.write_bytes(new)
            _sync(temporary)
            temporary.chmod(target.stat().st_mode & 0o7777)
            _require_unchanged(target, source)
            temporary.replace(target)
    except OSError as error:
        raise StorageError(
            f"to write {source.path}", str(error), "room on the disk and a folder that may be written"
        ) from None


def _require_python(new: bytes, path: Path) -> None:
    try:
        ast.parse(new)
    except (SyntaxError, ValueError) as error:
        found = f"it would not parse: {error}"
        raise UsageError(f"a rewritten {path} that is Python", found, "the file is left as it is") from None


def _require_unchanged(target: Path, source: SourceFile) -> None:
    if not target.stat().st_mode & 0o222 or not os.access(target, os.W_OK):
        raise UsageError(
            f"to write {source.path}", "it is read-only", f"chmod u+w {source.path}, then the same command"
        )
    if target.read_bytes() != source.raw:
        raise UsageError(
            f"{source.path} as it was read", "it has changed meanwhile", "the same command once more"
        )


def _require_committed(target: Path) -> None:
    """Refuse a file with changes that git would not give back."""
    # A repository's own configuration may name programs to run: none is.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(target.parent), "status", "--porcelain"]
    command += ["--untracked-files=no", "--ignore-submodules=all", "--", target.name]
    environment = os.environ | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_LITERAL_PATHSPECS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):  # no git here, or one that waits: nothing to ask
        return
    if done.returncode != 0:
        if NO_REPOSITORY in done.stderr:
            return
        found = f"git says: {done.stderr.strip().partition(chr(10))[0]}"
        raise UsageError(f"{target.name} as git knows it", found, "--force to write without asking git")
    if done.stdout.strip():
        raise UsageError(
            f"{target.name} without uncommitted changes",
            "git shows it as modified",
            "commit it first, so that the rewrite can be seen apart, or --force",
        )


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
