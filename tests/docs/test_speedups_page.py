"""docs/speedups.md holds the catalogue as it is."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "speedups.md"
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def test_the_table_on_the_page_is_the_catalogue() -> None:
    script = ROOT / "scripts" / "document_speedups.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert done.returncode == 0, "run: python scripts/document_speedups.py"


def test_links_lead_somewhere() -> None:
    for target in LINK.findall(PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).exists(), target
