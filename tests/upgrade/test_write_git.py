"""What git has committed is told by reading: as git tells it, without running anything of a repository."""

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from flashmore.cli.main import main
from flashmore.errors import UsageError
from flashmore.files import read_regular
from flashmore.git import Checkout, Indices, Unreadable
from flashmore.upgrade.verify.verifier import Verifier
from source_files import read_source, write_source

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "-c", "gc.auto=0")
ATTENTION = """\
import torch
def attend(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1), dim=-1) @ v
"""


NAMES = ("model.py", "a/deep/er/model.py", "a/other.py", "é é.py")


def git(folder: Path, *words: str, check: bool = True) -> str:
    command = ["git", "-C", str(folder), *IDENTITY, "-c", "protocol.file.allow=always", *words]
    return subprocess.run(command, check=check, capture_output=True, encoding="utf-8").stdout


def started(folder: Path, *options: str) -> Path:
    """A repository with some commits of some files in folders."""
    folder.mkdir()
    git(folder, "init", "-q", *options)
    for number in range(4):
        for name in (
            "model.py",
            "a/deep/er/model.py",
            "a/other.py",
            "é é.py",
            *(f"z{n}.py" for n in range(40)),
        ):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {name}\n" * 30 + f"x = {number}\n", encoding="utf-8")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", f"number {number}")
    return folder


def state(path: Path) -> str:
    path = path.resolve()
    stored = Checkout(path).stores(path, path.read_bytes())
    return {None: "untracked", True: "stored", False: "modified"}[stored]


def shown_by_git(path: Path) -> str:
    """The same from git itself."""
    line = git(path.parent, "status", "--porcelain", "--ignored", "--", path.name)[:2]
    if line in ("??", "!!"):
        return "untracked"
    return "modified" if line[1:] == "M" else "stored"


def plain(folder: Path) -> Path:
    return started(folder / "plain")


def packed(folder: Path) -> Path:
    top = started(folder / "packed")
    git(top, "gc", "--aggressive", "--prune=now", "-q")
    git(top, "pack-refs", "--all")
    assert "chain" in git(top, "verify-pack", "-sv", *map(str, top.glob(".git/objects/pack/*.idx")))
    return top


def delta_by_id(folder: Path) -> Path:
    top = started(folder / "by-id")
    git(top, "-c", "repack.useDeltaBaseOffset=false", "repack", "-adfq", "--depth=50")
    return top


def sha256(folder: Path) -> Path:
    top = started(folder / "sha256", "--object-format=sha256")
    git(top, "repack", "-adq")
    return top


def index_4(folder: Path) -> Path:
    top = started(folder / "index-4")
    git(top, "update-index", "--index-version=4")
    return top


def index_3(folder: Path) -> Path:
    top = started(folder / "index-3")
    git(top, "update-index", "--skip-worktree", "a/other.py")
    return top


def worktree(folder: Path) -> Path:
    git(started(folder / "main"), "worktree", "add", "-q", "-b", "side", str(folder / "side"))
    return folder / "side"


def submodule(folder: Path) -> Path:
    started(folder / "inner")
    outer = started(folder / "outer")
    git(outer, "submodule", "--quiet", "add", str(folder / "inner"), "sub")
    return outer / "sub"


def borrowed(folder: Path) -> Path:
    git(folder, "clone", "-q", "--shared", str(started(folder / "lender")), "borrower")
    return folder / "borrower"


def detached(folder: Path) -> Path:
    top = started(folder / "detached")
    git(top, "checkout", "-q", "--detach", "HEAD~1")
    return top


LAYOUTS = [plain, packed, delta_by_id, sha256, index_4, index_3, worktree, submodule, borrowed, detached]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_the_answer_is_that_of_git(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    top = layout(tmp_path)
    names = (*NAMES, "z0.py", "z39.py")
    for name in names:
        assert state(top / name) == shown_by_git(top / name) == "stored", name
    (top / "model.py").write_text("x = 99\n")
    (top / "z0.py").write_text("x = 98\n")
    (top / "a" / "added.py").write_text("x = 97\n")
    (top / "a" / "new.py").write_text("x = 96\n")
    (top / "ignored.py").write_text("x = 95\n")
    (top / ".gitignore").write_text("ignored.py\n")
    git(top, "add", "z0.py", "a/added.py")
    for name in (*names, "a/added.py", "a/new.py", "ignored.py"):
        assert state(top / name) == shown_by_git(top / name), name
    assert state(top / "a" / "added.py") == "stored"
    assert state(top / "ignored.py") == "untracked"


def test_before_the_first_commit_only_what_was_added_counts(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "model.py").write_text("x = 1\n")
    assert state(tmp_path / "model.py") == "untracked"
    git(tmp_path, "add", ".")
    assert state(tmp_path / "model.py") == "stored"


def test_a_file_without_a_repository_is_untracked(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("x = 1\n")
    assert state(tmp_path / "model.py") == "untracked"


@pytest.mark.parametrize("setting", ["core.autocrlf=true", "core.eol=crlf"])
def test_a_checkout_with_other_line_ends_is_committed(tmp_path: Path, setting: str) -> None:
    top = started(tmp_path / "lf")
    (top / ".gitattributes").write_text("*.py text=auto\n")
    git(top, "add", "-A")
    git(top, "commit", "-qm", "attributes")
    git(top, "config", *setting.split("="))
    (top / "model.py").unlink()
    git(top, "checkout", "--", "model.py")
    assert b"\r\n" in (top / "model.py").read_bytes()
    assert state(top / "model.py") == "stored"
    (top / "model.py").write_bytes((top / "model.py").read_bytes() + b"y = 1\r\n")
    assert state(top / "model.py") == "modified"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of repositories that are read."""
    found: list[Path] = []

    def noted(path: Path, limit: int) -> bytes:
        found.append(path)
        return read_regular(path, limit)

    monkeypatch.setattr("flashmore.git.read_regular", noted)
    return found


def test_an_index_is_read_once_for_all_files_of_a_command(tmp_path: Path, reads: list[Path]) -> None:
    top = started(tmp_path / "plain").resolve()
    (top / "new.py").write_text("x = 1\n")
    paths = [*(top / f"z{number}.py" for number in range(40)), top / "new.py"]
    indices = Indices(paths)
    for path in paths:
        write_source(read_source(path), "x = 99\n", indices=indices)
    assert [path for path in reads if path.name == "index"] == [top / ".git" / "index"]


def test_an_index_that_changes_meanwhile_is_asked_anew(tmp_path: Path) -> None:
    top = started(tmp_path / "plain").resolve()
    new, known = top / "new.py", top / "model.py"
    new.write_text("x = 1\n")
    indices = Indices([new, known])
    assert Checkout(new, indices).stores(new, new.read_bytes()) is None
    git(top, "add", "new.py")
    new.write_text("x = 2\n")
    with pytest.raises(UsageError, match="uncommitted changes"):
        write_source(read_source(new), "x = 3\n", indices=indices)
    known.write_text("x = 98\n")
    with pytest.raises(UsageError, match="uncommitted changes"):
        write_source(read_source(known), "x = 3\n", indices=indices)
    git(top, "add", "model.py")
    write_source(read_source(known), "x = 3\n", indices=indices)
    (top / ".git" / "index").unlink()
    write_source(read_source(new), "x = 3\n", indices=indices)


def test_a_repository_that_comes_into_being_meanwhile_is_seen(tmp_path: Path) -> None:
    new = tmp_path.resolve() / "new.py"
    new.write_text("x = 1\n")
    indices = Indices([new])
    assert Checkout(new, indices).stores(new, new.read_bytes()) is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "new.py")
    new.write_text("x = 2\n")
    assert Checkout(new, indices).stores(new, new.read_bytes()) is False


HOLLOW: dict[str, dict[str, str | None]] = {
    "empty": {},
    "an index alone": {"index": ""},
    "without HEAD": {"objects": None, "refs": None},
    "without refs": {"HEAD": "ref: refs/heads/main\n", "objects": None},
    "a HEAD that names nothing": {"HEAD": "nothing\n", "objects": None, "refs": None},
}


@pytest.mark.parametrize("hollow", HOLLOW)
def test_a_folder_that_git_does_not_take_as_its_own_hides_no_repository(tmp_path: Path, hollow: str) -> None:
    top = started(tmp_path / "plain")
    inner = top / "a" / ".git"
    inner.mkdir()
    for name, text in HOLLOW[hollow].items():
        if text is None:
            (inner / name).mkdir()
        else:
            (inner / name).write_text(text)
    changed = top / "a" / "other.py"
    changed.write_text("x = 99\n")
    assert Path(git(top / "a", "rev-parse", "--show-toplevel").strip()) == top.resolve()
    with pytest.raises(UsageError, match="uncommitted changes"):
        write_source(read_source(changed), "x = 4\n")


def test_a_repository_that_shares_its_objects_hides_the_one_around_it(tmp_path: Path) -> None:
    top, other = started(tmp_path / "plain"), started(tmp_path / "other")
    inner = top / "a" / ".git"
    inner.mkdir()
    (inner / "HEAD").write_bytes((other / ".git" / "HEAD").read_bytes())
    (inner / "commondir").write_text(str(other / ".git"))
    assert Path(git(top / "a", "rev-parse", "--show-toplevel").strip()) == (top / "a").resolve()
    assert state(top / "a" / "other.py") == "untracked"


def test_an_index_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = started(tmp_path / "plain")
    monkeypatch.setattr("flashmore.git.MOST_ENTRIES", 43)
    with pytest.raises(UsageError, match="44 files, and at most 43"):
        write_source(read_source(top / "model.py"), "x = 4\n")


def test_git_need_not_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = started(tmp_path / "plain")
    monkeypatch.setenv("PATH", str(tmp_path))
    (top / "model.py").write_text("x = 99\n")
    with pytest.raises(UsageError, match="uncommitted changes"):
        write_source(read_source(top / "model.py"), "x = 4\n")


def damaged(top: Path, name: str, content: bytes) -> None:
    path = top / ".git" / name
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def a_fifo(top: Path, name: str) -> None:
    (top / ".git" / name).unlink(missing_ok=True)
    os.mkfifo(top / ".git" / name)


def a_link(top: Path, name: str, to: str) -> None:
    (top / ".git" / name).unlink()
    (top / ".git" / name).symlink_to(to)


def a_bomb(top: Path) -> None:
    """Names that share all but a byte with the one before take little room in version 4 of an index."""
    name = os.urandom(4000).replace(b"\0", b"x")
    entry = bytes(60) + b"\x0f\xff"
    body = b"DIRC" + (4).to_bytes(4, "big") + (300_001).to_bytes(4, "big")
    body += entry + b"\0" + name + b"\0" + (entry + b"\0z\0") * 300_000
    (top / ".git" / "index").write_bytes(body + hashlib.sha1(body).digest())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda top: damaged(top, "index", b"DIRC\0\0\0\2\0\0\0\x09" + bytes(30)),
    "something else": lambda top: damaged(top, "index", b"PK" + bytes(100)),
    "empty": lambda top: damaged(top, "index", b""),
    "altered": lambda top: damaged(top, "index", (top / ".git/index").read_bytes().replace(b"z1.", b"z0.")),
    "huge": lambda top: os.truncate(top / ".git/index", 2**40),
    "a FIFO": lambda top: a_fifo(top, "index"),
    "a device": lambda top: a_link(top, "index", "/dev/zero"),
    "a link": lambda top: a_link(top, "index", "HEAD"),
    "a bomb": a_bomb,
    "split": lambda top: git(top, "update-index", "--split-index"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    top = started(tmp_path / "plain")
    DAMAGES[damage](top)
    new = top / "new.py"  # of which the index has to be asked
    new.write_text("x = 1\n")
    with pytest.raises(Unreadable):
        state(new)
    with pytest.raises(UsageError, match="cannot be read"):
        write_source(read_source(new), "x = 2\n")
    write_source(read_source(new), "x = 2\n", force=True)


@pytest.mark.parametrize("words", ["gitdir: /dev\n", "gitdir: /nowhere\n", "gitdir: .\n", "something else\n"])
def test_a_git_file_that_names_no_repository_is_refused_as_git_refuses_it(tmp_path: Path, words: str) -> None:
    top = started(tmp_path / "plain")
    (top / "a" / ".git").write_text(words)
    changed = top / "a" / "other.py"
    changed.write_text("x = 99\n")
    with pytest.raises(subprocess.CalledProcessError):
        git(top / "a", "status")
    with pytest.raises(UsageError, match=r"its repository cannot be read: \.git"):
        write_source(read_source(changed), "x = 4\n")


def test_a_git_that_is_a_link_to_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("x = 1\n")
    (tmp_path / ".git").symlink_to("/dev/zero")
    with pytest.raises(Unreadable):
        state(tmp_path / "model.py")


def test_a_path_with_a_nul_is_refused_by_name(tmp_path: Path) -> None:
    top = started(tmp_path / "plain")
    (top / ".git" / "commondir").write_bytes(b"a\0b\n")
    with pytest.raises(Unreadable, match="commondir has a NUL"):
        Checkout(top.resolve() / "model.py").commit()
    named = tmp_path / "named"
    named.mkdir()
    (named / ".git").write_bytes(b"gitdir: a\0b\n")
    (named / "model.py").write_text("x = 1\n")
    with pytest.raises(UsageError, match=r"its repository cannot be read: \.git has a NUL"):
        write_source(read_source(named / "model.py"), "x = 2\n")


PAYLOADS = {
    "a filter": '[filter "x"]\n\tclean = {trap}\n\tsmudge = {trap}\n\tprocess = {trap}\n',
    "fsmonitor": "[core]\n\tfsmonitor = {trap}\n",
    "hooks": "[core]\n\thooksPath = {folder}/hooks\n",
    "ssh": '[core]\n\tsshCommand = {trap}\n[remote "origin"]\n\turl = ssh://x/y\n\tpromisor = true\n'
    "[extensions]\n\tpartialClone = origin\n",
    "diff and pager": '[diff]\n\texternal = {trap}\n[diff "x"]\n\ttextconv = {trap}\n\tcommand = {trap}\n'
    "[core]\n\tpager = {trap}\n\teditor = {trap}\n\talternateRefsCommand = {trap}\n\taskPass = {trap}\n",
}


def trap_in(folder: Path) -> Path:
    """A program that leaves a trace in a new folder when it is run."""
    folder.mkdir()
    trap = folder / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {folder}/canary\ncat\n")
    trap.chmod(0o755)
    for name in ("post-index-change", "pre-commit", "fsmonitor-watchman", "reference-transaction"):
        (folder / "hooks").mkdir(exist_ok=True)
        shutil.copy2(trap, folder / "hooks" / name)
    return trap


def inside_a_cloned_one(folder: Path, payload: str) -> Path:
    """A clone that holds the parts of another `.git`, one folder up, beside a model."""
    trap = trap_in(folder)
    author = folder / "author"
    author.mkdir()
    git(author, "init", "-q")
    inner = author / "pkg"
    inner.mkdir()
    (inner / "model.py").write_text(ATTENTION)
    (inner / ".gitattributes").write_text("*.py filter=x diff=x\n")
    git(inner, "init", "-q")
    git(inner, "add", "-A")
    git(inner, "commit", "-qm", "inner")
    for entry in ("HEAD", "objects", "refs", "index"):
        (inner / ".git" / entry).rename(inner / entry)
    shutil.rmtree(inner / ".git")
    for name in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
        (inner / name).mkdir(parents=True, exist_ok=True)
        (inner / name / "keep").touch()
    config = "[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tworktree = .\n"
    (inner / "config").write_text(config + PAYLOADS[payload].format(trap=trap, folder=folder))
    git(author, "add", "-A", "-f")
    git(author, "commit", "-qm", "outer")
    git(folder, "clone", "-q", str(author), "clone")
    model = folder / "clone" / "pkg" / "model.py"
    os.utime(model)  # git would have to look at the content
    return model


def with_a_hostile_configuration(folder: Path, payload: str) -> Path:
    trap = trap_in(folder)
    top = started(folder / "unpacked")
    model = top / "model.py"
    model.write_text(ATTENTION)
    (top / ".gitattributes").write_text("*.py filter=x diff=x\n")
    git(top, "add", "-A")
    git(top, "commit", "-qm", "model")
    with (top / ".git" / "config").open("a") as config:
        config.write(PAYLOADS[payload].format(trap=trap, folder=folder))
    shutil.copytree(folder / "hooks", top / ".git" / "hooks", dirs_exist_ok=True)
    os.utime(model, (1, 1))
    return model


@pytest.mark.parametrize(
    "made", [inside_a_cloned_one, with_a_hostile_configuration], ids=lambda m: m.__name__
)
def test_nothing_of_a_repository_is_run(
    made: Callable[[Path, str], Path], tmp_path: Path, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {payload: made(tmp_path / payload, payload) for payload in PAYLOADS}
    monkeypatch.setattr("flashmore.cli.upgrade.Verifier", lambda: nullcontext(verifier))
    monkeypatch.chdir(next(iter(models.values())).parent)
    code = main(["upgrade", *map(str, models.values()), "--write"])
    for payload, model in models.items():
        assert not (tmp_path / payload / "canary").exists(), f"{payload}: a program of the repository was run"
        assert "scaled_dot_product_attention" in model.read_text(), payload
        assert stat.S_ISREG(model.lstat().st_mode)
    assert code == 0
