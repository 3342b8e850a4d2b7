"""Searching trees: every file once, whatever is wrong with the others; no torch, no crash."""

import ast
import os
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import pytest

from flashmore.upgrade.edits import apply, diff
from flashmore.upgrade.find import find_sites
from flashmore.upgrade.project.files import python_files
from flashmore.upgrade.search import MANY, search, search_file
from flashmore.upgrade.site import NotRead, Searched

ATTENTION = """import torch.nn.functional as F


def attend(q, k, v):
    scores = q @ k.transpose(-2, -1)
    return F.softmax(scores, dim=-1) @ v
"""


def only(path: Path) -> Searched | NotRead:
    (found,) = search([path])
    return found


def test_searching_needs_no_torch() -> None:
    code = "import sys, flashmore.upgrade.search; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_is_searched_in_the_encoding_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "latin.py"
    path.write_bytes(b"# -*- coding: latin-1 -*-\n# caf\xe9\n" + ATTENTION.encode())
    found = only(path)
    assert isinstance(found, Searched)
    assert found.encoding == "iso-8859-1"
    assert found.source.startswith("# -*- coding: latin-1 -*-\n# café\n")
    assert [site.verdict for site in found.sites] == ["rewritten"]


def test_a_byte_order_mark_is_no_part_of_the_source(tmp_path: Path) -> None:
    path = tmp_path / "marked.py"
    path.write_bytes(b"\xef\xbb\xbf" + ATTENTION.encode())
    found = only(path)
    assert isinstance(found, Searched)
    assert (found.encoding, found.source) == ("utf-8-sig", ATTENTION)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"def attend(q k v):\n    softmax\n", "not Python of this version"),
        (b"softmax = '\xff'\n", "encoding is unclear"),
        (b"# coding: martian\nsoftmax = 1\n", "encoding is unclear"),
        (b"softmax = 1\0\n", "null bytes"),
        (b"softmax = " + b"(" * 5000 + b")" * 5000, "nested|parse|parenthes"),
        (b"#" * (2**20 + 1), "1.0 MB"),
    ],
    ids=["syntax", "bytes", "encoding", "null", "nested", "large"],
)
def test_what_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a_bad.py").write_bytes(data)
    (tmp_path / "b_good.py").write_text(ATTENTION, encoding="utf-8")
    bad, good = search([tmp_path])
    assert isinstance(bad, NotRead)
    assert bad.path == str(tmp_path / "a_bad.py")
    assert any(part in bad.reason for part in reason.split("|")), bad.reason
    assert isinstance(good, Searched)
    assert [site.verdict for site in good.sites] == ["rewritten"]


def test_links_that_lead_round_in_a_circle_end(tmp_path: Path) -> None:
    inner = tmp_path / "package" / "inner"
    inner.mkdir(parents=True)
    (inner / "model.py").write_text(ATTENTION, encoding="utf-8")
    (inner / "round").symlink_to(tmp_path / "package")
    (tmp_path / "package" / "again.py").symlink_to(inner / "model.py")
    (tmp_path / "package" / "nowhere.py").symlink_to(tmp_path / "missing.py")
    found = python_files([tmp_path, inner])
    assert len(found) == len({path.resolve() for path in found}) == 2
    results = {Path(each.path).name: type(each) for each in search([tmp_path])}
    assert NotRead in results.values()
    assert Searched in results.values()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    found = only(tmp_path / "missing.py")
    assert isinstance(found, NotRead)
    assert found.reason == "it is not a file"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.py"
    path.write_text(ATTENTION, encoding="utf-8")
    path.chmod(0)
    assert isinstance(only(path), NotRead)


def test_several_processes_find_the_same_in_the_same_order(tmp_path: Path) -> None:
    for index in range(MANY + 3):
        (tmp_path / f"m{index:03}.py").write_text(ATTENTION + f"\n# {index}\n", encoding="utf-8")
    seen: list[tuple[int, int]] = []
    one = list(search([tmp_path], progress=lambda done, of: seen.append((done, of))))
    assert list(search([tmp_path], processes=2)) == one
    assert seen[-1] == (MANY + 3, MANY + 3)


@pytest.mark.parametrize("line", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_line_ends_stay_as_they_are(line: str) -> None:
    source = ATTENTION.replace("scores, dim=-1", "scores * 0.125, dim=-1").replace("\n", line)
    after = apply(source, find_sites(source))
    assert after != source
    assert "\n" not in after.replace(line, "")
    assert ast.parse(after)


def test_odd_characters_before_the_place_shift_nothing() -> None:
    odd = "# \x0b \x1c \x85 \u2028 ünïcödé 𝔸\n"
    source = odd + ATTENTION.replace("def attend", "𝔸 = 'ä\u2028' ; ä = 1\n\n\ndef attend")
    after = apply(source, find_sites(source))
    assert "F.scaled_dot_product_attention(q, k, v, scale=1.0)" in after
    assert after.startswith(odd)


def test_a_diff_is_taken_by_git(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(ATTENTION.rstrip("\n"), encoding="utf-8")
    source = ATTENTION.rstrip("\n")
    changed = apply(source, find_sites(source))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(
        ["git", "apply"], cwd=tmp_path, input=diff(source, changed, "model.py"), text=True, check=True
    )
    assert (tmp_path / "model.py").read_text(encoding="utf-8") == changed


def test_statements_that_share_a_line_are_left_alone() -> None:
    source = "import torch\n\ndef attend(q, k, v):\n    s = q @ k.mT; w = s.softmax(-1)\n    return w @ v\n"
    (site,) = find_sites(source)
    assert (site.verdict, site.reason) == ("refused", "several statements share a line")


HELPER = """import torch

class Attention:
    def _attend(self, q, k, v{parameter}):
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        out = weights @ v
        return out, {weights}

    def forward(self, q, k, v, wanted=False):
        out, weights = self._attend(q, k, v{argument})
        return (out, weights) if wanted else out
"""


def test_weights_that_a_helper_returns_are_left_and_the_advice_leads_to_a_rewriting() -> None:
    (site,) = find_sites(HELPER.format(parameter="", argument="", weights="weights"))
    assert site.verdict == "refused"
    assert "called by forward in line 10" in site.advice
    followed = HELPER.format(parameter=", wanted", argument=", wanted", weights="weights if wanted else None")
    (site,) = find_sites(followed)
    assert (site.verdict, site.guard) == ("rewritten", "not wanted")


def installed(limit: int) -> list[Path]:
    """Files of this environment that mention a softmax, and as many that do not."""
    files = python_files([sysconfig.get_path("purelib")])
    files.sort(key=lambda path: (b"oftmax" not in path.read_bytes(), str(path)))
    return files[:limit]


def round_trip(path: Path) -> None:
    found = search_file(path)
    if isinstance(found, Searched):
        assert not any("could not be understood" in site.reason for site in found.sites), path
        with warnings.catch_warnings():  # of an escape in a string, which is the file's own
            warnings.simplefilter("ignore")
            ast.parse(apply(found.source, found.sites))


def test_installed_files_never_crash_the_search() -> None:
    for path in installed(50):
        round_trip(path)


@pytest.mark.long
def test_no_installed_file_crashes_the_search() -> None:
    for path in python_files([sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")]):
        round_trip(path)


NESTED = """
import torch

def forward(a, b, c, q, v):
    return torch.softmax(q @ (torch.softmax(a @ b.transpose(-2, -1), -1) @ c).transpose(-2, -1), -1) @ v
"""


def test_of_two_attentions_within_each_other_one_is_rewritten_at_a_time() -> None:
    sites = find_sites(NESTED, "nested.py")
    assert sorted(site.verdict for site in sites) == ["refused", "rewritten"]
    (refused,) = (site for site in sites if site.verdict == "refused")
    assert "another attention of this function" in refused.reason
    assert not refused.edits
    changed = apply(NESTED, sites)
    ast.parse(changed)
    assert changed.count("scaled_dot_product_attention(") == 1


def test_modules_in_the_working_directory_are_not_imported(tmp_path: Path) -> None:
    code = f"import pathlib; pathlib.Path({str(tmp_path / 'canary')!r}).touch()\n"
    folder = tmp_path / "project"
    folder.mkdir()
    names = ("multiprocessing", "pickle", "signal", "torch", "rich", "tyro", "einops", "numpy", "flashmore")
    for name in names:
        (folder / f"{name}.py").write_text(code)
    for number in range(MANY):
        (folder / f"model{number}.py").write_text("softmax = 1\n")
    (folder / "attention.py").write_text(ATTENTION)
    program = Path(sys.executable).with_name("flashmore")
    for options in ([], ["--prove"]):
        command = [str(program), "upgrade", ".", *options]
        done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=300)
        assert done.returncode == 1, done.stderr
        assert f"{MANY + len(names) + 1} files searched: 1 can be rewritten" in done.stdout
    assert not (tmp_path / "canary").exists(), "a module of the working directory was imported"
