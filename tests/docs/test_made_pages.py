"""What the documentation tells from the code's own data is what that data makes."""

import os
import shutil
from pathlib import Path
from subprocess import CompletedProcess

from forks import Forks

ROOT = Path(__file__).parents[2]


def document(forks: Forks, root: Path, *words: str) -> CompletedProcess[str]:
    return forks.run((root / "scripts" / "document.py", *words), os.environ)


def test_every_made_page_is_up_to_date(forks: Forks) -> None:
    done = document(forks, ROOT, "--check")
    assert done.returncode == 0, f"{done.stdout}run: python scripts/document.py"


def test_a_stale_page_is_named_and_made_again(forks: Forks, tmp_path: Path) -> None:
    for folder in ("scripts", "docs", "src/flashmore/measuring", "tests/upgrade/cases"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    page = tmp_path / "docs" / "speedups.md"
    right = page.read_text(encoding="utf-8")
    page.write_text(right.replace("| `compile` |", "| `compiled` |"), encoding="utf-8")
    checked = document(forks, tmp_path, "--check")
    assert (checked.returncode, checked.stdout) == (1, "docs/speedups.md is out of date\n")
    assert document(forks, tmp_path).returncode == 0
    assert page.read_text(encoding="utf-8") == right
