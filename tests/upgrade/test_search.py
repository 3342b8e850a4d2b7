"""Searching trees: every file once, whatever is wrong with the others; no torch, no crash."""

import ast
import os
import subprocess
import sys
import sysconfig
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest

from flashmore.cli.main import main
from flashmore.upgrade.edits import apply
from flashmore.upgrade.find import find_sites
from flashmore.upgrade.project.walk import DEEPEST, python_files
from flashmore.upgrade.report import FileReport, Report
from flashmore.upgrade.search import MANY, search, search_file
from flashmore.upgrade.site import NotRead, Searched
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.verify.verifier import Verifier

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
        (b"def attend(q k v):\n    softmax\n", "not valid for this version of Python"),
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
    found, not_read = python_files([tmp_path, inner])
    assert not_read == []
    assert len(found) == len({path.resolve() for path in found}) == 2
    results = {Path(each.path).name: type(each) for each in search([tmp_path])}
    assert NotRead in results.values()
    assert Searched in results.values()


def named(folder: Path, *paths: Path) -> tuple[set[str], dict[str, str]]:
    """What is searched below the folder, and what is not read with the reason."""
    results = list(search(paths or [folder]))
    unread = {
        os.path.relpath(each.path, folder): each.reason for each in results if isinstance(each, NotRead)
    }
    return {os.path.relpath(each.path, folder) for each in results if isinstance(each, Searched)}, unread


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A project with links out of it: a file's, a folder's, one through another, and to nothing."""
    for folder in ("outside/pkg", "project/inner/.venv"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("outside/attn.py", "outside/pkg/attn.py", "project/own.py", "project/inner/.venv/other.py"):
        (tmp_path / name).write_text(ATTENTION, encoding="utf-8")
    (tmp_path / "project/inner/.venv/pyvenv.cfg").touch()
    (tmp_path / "project/inner/text").write_text(ATTENTION, encoding="utf-8")
    for name, target in {
        "link.py": "../outside/attn.py",
        "sub": "../outside/pkg",
        "up": "..",
        "notes.ipynb": "../outside/nowhere.ipynb",
        "data": "../outside/attn.py",
        "twice.py": "link.py",
        "own_too.py": "own.py",
        "inner/text.py": "text",
        "environment.py": "inner/.venv/other.py",
    }.items():
        (tmp_path / "project" / name).symlink_to(target)
    return tmp_path


def test_links_that_lead_out_of_the_folder_are_named_and_not_followed(linked: Path) -> None:
    searched, unread = named(linked / "project")
    assert searched == {"own.py", "inner/text.py"}
    assert unread.pop("environment.py").startswith("it is a link to ")
    assert unread.keys() == {"link.py", "sub", "up", "notes.ipynb", "twice.py"}
    for name, reason in unread.items():
        target = (linked / "project" / name).resolve()
        assert reason == (
            f"it is a link to {target}, which is outside the given paths; give that path to search it"
        )


def test_a_path_on_the_command_line_may_be_a_link(linked: Path) -> None:
    project = linked / "project"
    assert named(linked, project / "link.py") == ({"project/link.py"}, {})
    assert named(linked, project / "sub") == ({"project/sub/attn.py"}, {})
    both, unread = named(linked, project, linked / "outside")
    assert both == {"project/own.py", "project/inner/text.py", "outside/attn.py", "outside/pkg/attn.py"}
    assert unread.keys() == {"project/environment.py", "project/up", "project/notes.ipynb"}


@pytest.mark.parametrize("option", ["--write", "--diff"])
def test_nothing_is_written_through_a_link_that_leads_out(
    linked: Path,
    option: str,
    verifier: Verifier,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flashmore.cli.upgrade.Verifier", lambda: nullcontext(verifier))
    monkeypatch.chdir(linked)
    main(["upgrade", "project", option])
    out, err = capsys.readouterr()
    assert "link.py: not read: it is a link" in out + err
    assert "outside" not in "".join(line for line in out.splitlines() if line.startswith("+++"))
    for name in ("outside/attn.py", "outside/pkg/attn.py"):
        assert (linked / name).read_text(encoding="utf-8") == ATTENTION
    assert ((linked / "project/own.py").read_text(encoding="utf-8") != ATTENTION) is (option == "--write")


def test_folders_that_many_ways_lead_to_are_walked_once(tmp_path: Path) -> None:
    for number in range(26):
        (tmp_path / f"d{number}").mkdir()
    for number in range(25):
        for way in "xy":
            (tmp_path / f"d{number}" / way).symlink_to(f"../d{number + 1}")
    (tmp_path / "d25" / "model.py").write_text(ATTENTION, encoding="utf-8")
    assert named(tmp_path) == ({"d25/model.py"}, {})


def test_a_link_to_the_root_does_not_walk_the_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to("/")
    (tmp_path / "model.py").write_text(ATTENTION, encoding="utf-8")
    searched, unread = named(tmp_path)
    assert (searched, set(unread)) == ({"model.py"}, {"disk"})


def test_folders_that_are_nested_too_deeply_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(DEEPEST + 50):
        folder /= "d"
        folder.mkdir()
        (folder / "model.py").write_text("softmax = 1\n")
    (tmp_path / "z.py").write_text(ATTENTION, encoding="utf-8")
    searched, unread = named(tmp_path)
    assert searched == {"z.py", *("d/" * depth + "model.py" for depth in range(1, DEEPEST + 1))}
    assert [*unread.values()] == [f"it lies more than {DEEPEST} folders deep; give its path to search it"]


def test_more_names_than_are_looked_at_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmore.upgrade.project.walk.MOST_ENTRIES", 6)
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.py").write_text(ATTENTION, encoding="utf-8")
        (tmp_path / folder / "picture").touch()
    searched, unread = named(tmp_path)
    assert searched == {"a/model.py"}
    assert unread.keys() == {"."}
    assert f"{tmp_path / 'b'} and what follows are not searched" in unread["."]


def test_more_links_than_are_looked_at_are_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmore.upgrade.project.walk.MOST_LINKS", 3)
    for folder in ("one", "two"):
        for name in ("a", "b"):
            (tmp_path / folder / name).mkdir(parents=True)
            (tmp_path / folder / name / "model.py").write_text(ATTENTION, encoding="utf-8")
            for link in ("x.py", "y.py", "z.py"):
                (tmp_path / folder / name / link).symlink_to("nowhere.py")
    models = {f"{folder}/{name}/model.py" for folder in ("one", "two") for name in ("a", "b")}
    searched, unread = named(tmp_path)
    assert searched == models
    assert unread.keys() == {"one/a/x.py", "one/b/x.py"}
    assert unread["one/b/x.py"].startswith("it is one of more than 3 links")
    searched, unread = named(tmp_path, tmp_path / "one", tmp_path / "two")  # of each path so many
    assert searched == models
    assert unread.keys() == {"one/a/x.py", "one/b/x.py", "two/a/x.py", "two/b/x.py"}


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


def test_statements_that_share_a_line_are_left_alone() -> None:
    source = "import torch\n\ndef attend(q, k, v):\n    s = q @ k.mT; w = s.softmax(-1)\n    return w @ v\n"
    (site,) = find_sites(source)
    assert (site.verdict, site.reason) == ("refused", "several statements share a line")


HELPER = """import torch

class Attention:
    def attend(self, q, k, v{parameter}):
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        out = weights @ v
        return out, {weights}

    def forward(self, q, k, v, wanted=False):
        out, weights = self.attend(q, k, v{argument})
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
    """Files of PyTorch that mention a softmax, and as many that do not."""
    files, _ = python_files([f"{sysconfig.get_path('purelib')}/torch/nn"])
    files.sort(key=lambda path: (b"oftmax" not in path.read_bytes(), str(path)))
    return files[:limit]


def round_trip(path: Path) -> None:
    found = search_file(path)
    if isinstance(found, Searched):
        assert not any(site.verdict == "failed" for site in found.sites), path
        with warnings.catch_warnings():  # of an escape in a string, which is the file's own
            warnings.simplefilter("ignore")
            ast.parse(apply(found.source, found.sites))


def test_installed_files_never_crash_the_search() -> None:
    for path in installed(16):
        round_trip(path)


@pytest.mark.long
def test_no_installed_file_crashes_the_search() -> None:
    for path in python_files([sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")])[0]:
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
    assert "another attention in this function" in refused.reason
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
    command = [str(program), "upgrade", ".", "--test"]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 1, done.stderr
    assert f"{MANY + len(names) + 1} files searched: 1 can be rewritten" in done.stdout
    assert not (tmp_path / "canary").exists(), "a module of the working directory was imported"


def test_a_file_with_a_written_softmax_alone_is_searched(tmp_path: Path) -> None:
    body = "    e = (q @ k.mT).exp()\n    return (e / e.sum(-1, keepdim=True)) @ v\n"
    source = f"import torch\n\ndef attend(q, k, v):\n{body}"
    (tmp_path / "model.py").write_text(source, encoding="utf-8")
    (found,) = search([tmp_path / "model.py"])
    assert isinstance(found, Searched)
    assert [site.verdict for site in found.sites] == ["rewritten"]


@pytest.mark.parametrize("name", ["dims", "text", "merged", "_init__"])
def test_a_method_of_somebody_is_no_method_of_the_search(name: str) -> None:
    lines = f"    k = k.{name}(2, 3)\n    return (q @ k.mT).softmax(-1) @ v\n"
    (site,) = find_sites(f"import torch\n\n\ndef attend(q, k, v):\n{lines}")
    assert site.verdict == "rewritten"


def test_an_error_of_our_own_is_no_refusal_and_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Flow.run

    def failing(flow: Flow) -> Flow:
        if flow.function.name == "strange":
            raise KeyError("unknown letter")
        return run(flow)

    monkeypatch.setattr(Flow, "run", failing)
    path = tmp_path / "model.py"
    body = "(q, k, v):\n    return (q @ k.mT).softmax(-1) @ v"
    both = f"def strange{body}\n\n\ndef usual{body}"
    sites = find_sites(f"import torch\n\n\n{both}\n", str(path))
    assert [(site.symbol, site.verdict) for site in sites] == [("strange", "failed"), ("usual", "rewritten")]
    assert sites[0].reason == "KeyError: 'unknown letter'"
    report = Report(1, [FileReport.of(Searched(str(path), both, both.encode(), "utf-8", tuple(sites)))])
    assert report.summary().endswith("1 can be rewritten, 0 refused, 0 already fused, 1 failed")


@pytest.mark.parametrize(
    "check", ["assert not weights.isnan().any()", "assert (weights >= 0).all()", "assert_finite(weights)"]
)
def test_an_assertion_about_numbers_says_what_to_do(tmp_path: Path, check: str) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "import torch\n\n\ndef attend(q, k, v):\n"
        "    weights = torch.softmax(q @ k.transpose(-2, -1), dim=-1)\n"
        f"    {check}\n    return weights @ v\n"
    )
    (found,) = search([path])
    assert isinstance(found, Searched)
    (site,) = found.sites
    assert site.verdict == "refused"
    assert site.reason.endswith("in line 6")
    assert site.advice.startswith("assertions are kept")
