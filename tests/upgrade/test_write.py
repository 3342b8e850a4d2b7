"""Writing: whole or not at all, every byte outside the edits kept, and never over what was not read."""

import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmore.errors import FlashmoreError, StorageError, UsageError
from flashmore.upgrade.patch import patch
from flashmore.upgrade.site import Searched
from source_files import read_source, write_source

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *IDENTITY, *words]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "model.py").write_bytes(b"x = 1\ny = 2\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def refused(source: Searched, text: str, *, force: bool = False) -> FlashmoreError:
    before = Path(source.path).read_bytes()
    with pytest.raises(UsageError) as error:
        write_source(source, text, force=force)
    assert Path(source.path).read_bytes() == before
    assert [path.name for path in Path(source.path).parent.iterdir() if path.name.endswith(".new")] == []
    return error.value


@pytest.mark.parametrize(
    "raw",
    [
        b"x = 1\n# a\ny = 2",
        b"x = 1\r\n# a\r\ny = 2\r\n",
        b"\xef\xbb\xbfx = 1\n# \xc3\xa9\n",
        b"# -*- coding: latin-1 -*-\nx = 1  # \xe9\r\ny = 2\n",
        "# \x0b\x0c\x1c\u2028 é\nx = 1\r\ny = 2\n".encode(),
        b"x = 1\ry = 2\r",
    ],
    ids=["no last line end", "CRLF", "BOM", "latin-1, mixed ends", "odd characters", "CR"],
)
def test_every_byte_outside_an_edit_stays(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "model.py"
    path.write_bytes(raw)
    source = read_source(path)
    write_source(source, source.source.replace("x = 1", "x = 10"))
    assert path.read_bytes() == raw.replace(b"x = 1", b"x = 10")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.py"]


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    real = tmp_path / "real.py"
    real.write_text("x = 1\n")
    real.chmod(0o755)
    link = tmp_path / "link.py"
    link.symlink_to(real)
    write_source(read_source(link), "x = 2\n")
    assert link.is_symlink()
    assert real.read_text() == "x = 2\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o755


def test_a_file_that_changed_since_it_was_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("x = 1\n")
    source = read_source(path)
    path.write_text("x = 7\n")
    assert "changed" in refused(source, "x = 2\n").found
    assert "changed" in refused(source, "x = 2\n", force=True).found


def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("x = 1\n")
    path.chmod(0o444)
    assert "read-only" in refused(read_source(path), "x = 2\n").found


def test_what_would_not_parse_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("x = 1\n")
    assert "parse" in refused(read_source(path), "x = (\n").found


def test_what_git_shows_as_modified_is_refused_unless_forced(repository: Path) -> None:
    path = repository / "model.py"
    path.write_text("x = 3\n")
    assert "last added or committed" in refused(read_source(path), "x = 4\n").found
    write_source(read_source(path), "x = 4\n", force=True)
    assert path.read_text() == "x = 4\n"


def test_what_was_added_and_not_committed_is_written_for_git_has_stored_it(repository: Path) -> None:
    path = repository / "model.py"
    path.write_text("x = 3\n")
    git(repository, "add", ".")
    write_source(read_source(path), "x = 4\n")
    assert path.read_text() == "x = 4\n"
    assert "last added or committed" in refused(read_source(path), "x = 5\n").found


def test_what_git_has_committed_or_does_not_know_is_written(repository: Path) -> None:
    write_source(read_source(repository / "model.py"), "x = 4\n")
    new = repository / "[new].py"
    new.write_text("x = 1\n")
    write_source(read_source(new), "x = 5\n")
    assert new.read_text() == "x = 5\n"


def test_extended_attributes_and_the_owner_stay(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("x = 1\n")
    os.setxattr(path, "user.note", b"kept")
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
    path.chmod(0o2750)
    before = path.stat()
    write_source(read_source(path), "x = 2\n")
    after = path.stat()
    assert path.read_text() == "x = 2\n"
    assert os.getxattr(path, "user.note") == b"kept"
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


def test_a_file_with_several_names_is_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "model.py", tmp_path / "other.py"
    path.write_text("x = 1\n")
    other.hardlink_to(path)
    for force in (False, True):
        assert "2 hard links" in refused(read_source(path), "x = 2\n", force=force).found
    assert path.samefile(other)


def test_a_file_that_was_replaced_by_an_equal_one_while_it_was_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.py"
    path.write_text("x = 1\n")
    source = read_source(path)
    sync = os.fsync

    def exchange(descriptor: int) -> None:
        sync(descriptor)
        other = tmp_path / "other.py"
        other.write_text("x = 1\n")
        other.replace(path)

    monkeypatch.setattr(os, "fsync", exchange)
    assert "changed" in refused(source, "x = 2\n").found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("x = 1\n")
    source = read_source(path)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StorageError):
            write_source(source, "x = 2\n")
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    "name", ["model.py", "a b.py", "é.py", 'quo"te.py', "back\\slash.py", "tab\there.py"]
)
def test_git_applies_the_patch_of_any_name(
    repository: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository / "sub"
    folder.mkdir()
    path = folder / name
    path.write_bytes(b"a = 1\nx = 1\r\nb = 2")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "second")
    for working in (repository, folder):
        monkeypatch.chdir(working)
        (repository / "p.patch").write_bytes(
            patch("a = 1\nx = 1\r\nb = 2", "a = 1\nx = 2\r\nb = 3", path).encode()
        )
        git(working, "apply", str(repository / "p.patch"))
        assert path.read_bytes() == b"a = 1\nx = 2\r\nb = 3"
        git(repository, "checkout", "--", ".")


LINES = st.lists(st.sampled_from(["a", "b = 1", "é", "", "\x0c", "x\r", "\x1c \u2028"]), max_size=12)


@given(before=LINES, after=LINES, ends=st.tuples(st.booleans(), st.booleans()))
def test_git_applies_what_changes_any_text(
    tmp_path_factory: pytest.TempPathFactory, before: list[str], after: list[str], ends: tuple[bool, bool]
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    one, two = ("\n".join(lines) + "\n" * end for lines, end in zip((before, after), ends, strict=True))
    if not one or not two or one == two:
        return
    path = folder / "model.py"
    path.write_bytes(one.encode())
    here = Path.cwd()
    os.chdir(folder)
    try:
        (folder / "p.patch").write_bytes(patch(one, two, path).encode())
        subprocess.run(["git", "apply", "p.patch"], check=True, capture_output=True)
    finally:
        os.chdir(here)
    assert path.read_bytes() == two.encode()
