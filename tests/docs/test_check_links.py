"""scripts/check_links.py finds what is wrong with a site, and accepts what is right."""

import subprocess
import sys
from pathlib import Path

import pytest

from check_links import problems

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_links.py"
RIGHT = """<html><head>
<link rel="stylesheet" href="a/style.css"><link rel="canonical" href="https://example.org/">
<script src="a/main.js"></script>
<style>@import "a/style.css"; body { background: url(a/dot.png) }</style>
</head><body><h1 id="top">Top</h1>
<a href="#top">1</a><a href="a/two%20words.html#part">2</a><a href="a/">3</a>
<a href="https://example.org/x">4</a><a href="mailto:a@example.org">5</a>
<img src="data:image/png;base64,AA==">
</body></html>
"""
CDN = "https://cdn.example/x"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "a").mkdir(parents=True)
    (folder / "index.html").write_text(RIGHT, encoding="utf-8")
    (folder / "a" / "index.html").write_text('<a href="../index.html#top">up</a>', encoding="utf-8")
    (folder / "a" / "two words.html").write_text(
        '<p id="part">url(https://example.org/a.png)</p>', encoding="utf-8"
    )
    (folder / "a" / "style.css").write_text("b { background: url('dot.png') }", encoding="utf-8")
    for name in ("main.js", "dot.png"):
        (folder / "a" / name).write_bytes(b"")
    (folder / "404.html").write_text('<a href="/a/">home</a>', encoding="utf-8")
    return folder


def test_a_site_without_problems_has_none(site: Path) -> None:
    assert list(problems(site)) == []


@pytest.mark.parametrize(
    ("html", "problem"),
    {
        '<a href="b.html">': "b.html: no such file",
        '<a href="../outside.html">': "../outside.html: no such file",
        '<a href="index.html#bottom">': "index.html#bottom: no element has this id",
        '<a href="#bottom">': "#bottom: no element has this id",
        '<a href="/a/">': "/a/: an absolute path, which breaks where the site is not at the root of its host",
        '<img src="a/none.png">': "a/none.png: no such file",
        f'<script src="{CDN}.js"></script>': f"loads from another server: {CDN}.js",
        '<link rel="preload" href="//cdn.example/f.woff2">': (
            "loads from another server: //cdn.example/f.woff2"
        ),
        f'<style>@import "{CDN}.css";</style>': f"loads from another server: {CDN}.css",
        f'<p style="background: url({CDN}.png)">': f"loads from another server: {CDN}.png",
    }.items(),
)
def test_a_problem_is_named_with_its_page(html: str, problem: str, site: Path) -> None:
    (site / "page.html").write_text(html, encoding="utf-8")
    assert list(problems(site)) == [f"page.html: {problem}"]


def test_a_style_sheet_loads_nothing_from_another_server(site: Path) -> None:
    (site / "a" / "fonts.css").write_text(f"@font-face {{ src: url({CDN}.woff2) }}", encoding="utf-8")
    assert list(problems(site)) == [f"a/fonts.css: loads from another server: {CDN}.woff2"]


def test_the_exit_code_tells_whether_there_are_problems(site: Path, tmp_path: Path) -> None:
    def check(folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, SCRIPT, folder], check=False, capture_output=True, encoding="utf-8"
        )

    assert check(site).returncode == 0
    (site / "page.html").write_text('<a href="b.html">', encoding="utf-8")
    assert (check(site).returncode, check(site).stdout.splitlines()[0]) == (
        1,
        "page.html: b.html: no such file",
    )
    (tmp_path / "empty").mkdir()
    refused = check(tmp_path / "empty")
    assert refused.returncode == 2
    assert "expected a folder with HTML files" in refused.stderr
