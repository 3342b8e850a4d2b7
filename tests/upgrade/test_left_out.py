"""What is left out of a search: what git ignores, compared with git, and what the project excludes."""

import os
import subprocess
from pathlib import Path

import pytest

from flashmore.upgrade.project.patterns import Patterns
from flashmore.upgrade.project.walk import python_files

IGNORES = {
    ".gitignore": "build/\n*_gen.py\n!keep_gen.py\n/only_here.py\n# a comment\n\\#odd.py\n"
    "docs/*\n!docs/conf.py\ndeep/**/x.py\nspace\\ .py \n[ab].py\nz.py\\\n!\n",
    "src/.gitignore": "!a.py\nlocal.py\n/only_here.py\n",
    "src/again/.gitignore": "!local.py\n*_gen.py\n",
}
FILES = (
    "a.py", "c.py", "z.py", "build/a.py", "src/build/c.py", "src/a.py", "src/b.py", "x_gen.py", "keep_gen.py",
    "only_here.py", "src/only_here.py", "src/again/only_here.py", "#odd.py", "docs/conf.py", "docs/other.py",
    "docs/sub/c.py", "deep/x.py", "deep/1/2/x.py", "src/local.py", "src/again/local.py",
    "src/again/keep_gen.py", "space .py", "é_gen.py", "secret.py",
)  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n", encoding="utf-8")
    for name, text in IGNORES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def found_in(*paths: Path, exclude: Patterns | None = None, force_exclude: bool = False) -> set[str]:
    files, not_read = python_files(paths, exclude=exclude, force_exclude=force_exclude)
    assert not_read == []
    top = paths[0] if paths[0].is_dir() else paths[0].parent
    return {path.relative_to(top).as_posix() for path in files}


def test_what_git_ignores_is_left_out(project: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    (project / ".git" / "info" / "exclude").write_text("secret.py\n", encoding="utf-8")
    listed = subprocess.run(
        ["git", "-c", "core.excludesFile=", "ls-files", "-z", "--others", "--exclude-standard", "*.py"],
        cwd=project, check=True, capture_output=True,
    ).stdout  # fmt: skip
    expected = {os.fsdecode(name) for name in listed.split(b"\0") if name}
    assert 5 < len(expected) < len(FILES)
    assert found_in(project) == expected
    inside = {name.removeprefix("src/") for name in expected if name.startswith("src/")}
    assert found_in(project / "src") == inside


def test_without_a_repository_only_the_files_below_a_path_count(project: Path) -> None:
    assert "local.py" not in found_in(project / "src")
    assert "b.py" in found_in(project / "src")
    assert "src/b.py" not in found_in(project)


def test_a_path_that_is_given_is_searched_whoever_ignores_it(project: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    assert found_in(project / "build") == {"a.py"}
    assert found_in(project / "x_gen.py") == {"x_gen.py"}
    exclude = Patterns.of(project, ["build", "c.py"])
    assert found_in(project / "build", exclude=exclude) == {"a.py"}
    assert found_in(project / "c.py", exclude=exclude) == {"c.py"}
    assert found_in(project / "c.py", exclude=exclude, force_exclude=True) == set()
    assert found_in(project / "build", exclude=exclude, force_exclude=True) == set()


def test_what_is_excluded_is_left_out_of_folders(project: Path) -> None:
    everything = found_in(project)
    exclude = Patterns.of(project, ["src/again", "/z.py"])
    left = found_in(project, exclude=exclude)
    assert everything - left == {"z.py", "src/again/only_here.py", "src/again/local.py"}


def test_links_are_left_out_by_their_own_names(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")  # a link to it is told, unless it is left out
    (project / "link_gen.py").symlink_to(outside / "a.py")
    (project / "src" / "build").rename(project / "src" / "kept")
    (project / "src" / "build").symlink_to(outside)
    (project / "build" / "round").symlink_to(project)
    (project / "src" / "round").symlink_to(project)
    assert "link_gen.py" not in found_in(project)


def test_a_file_of_git_that_cannot_be_read_is_named(project: Path) -> None:
    (project / ".gitignore").unlink()
    os.mkfifo(project / ".gitignore")
    files, (left,) = python_files([project])
    assert left.path == str(project / ".gitignore")
    assert left.reason == "its patterns are not applied: it is not a file"
    assert project / "build" / "a.py" in files
    (project / ".gitignore").unlink()
    (project / ".gitignore").write_text("\n".join(f"d{i}/" for i in range(4_000)), encoding="utf-8")
    _, (left,) = python_files([project])
    assert left.reason == "its patterns are not applied: it has more than 3,000 lines"
    (project / ".gitignore").write_text("\n".join(f"{i}{'*a' * 100}" for i in range(1500)), encoding="utf-8")
    _, (left,) = python_files([project])
    assert "1,500 patterns take too much memory" in left.reason


def test_a_hostile_pattern_is_matched_in_linear_time(project: Path) -> None:
    # A backtracking matcher never ends here.
    (project / ".gitignore").write_text("*a" * 30 + "b\n", encoding="utf-8")
    (project / ("a" * 250 + ".py")).write_text("", encoding="utf-8")
    assert "a" * 250 + ".py" in found_in(project)


def test_names_that_are_no_utf_8_are_matched(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff_gen.py")
    try:
        (tmp_path / name).write_text("", encoding="utf-8")
    except OSError:
        pytest.skip("the file system takes no such names")
    (tmp_path / ".gitignore").write_bytes(b"\xff*.py\n")
    assert found_in(tmp_path) == set()
