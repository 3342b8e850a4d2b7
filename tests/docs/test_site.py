"""The documentation site builds without a warning, has no broken link, and documents every public name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import flashmore
from check_links import problems

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_site_builds_and_documents_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert list(problems(tmp_path)) == []
    documented = re.findall(r'id="flashmore\.(\w+)"', (tmp_path / "docs" / "api.html").read_text("utf-8"))
    assert set(documented) == set(flashmore.__all__)
