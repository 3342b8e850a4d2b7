"""docs/speedups.md holds the catalogue as it is."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "speedups.md"
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def test_links_lead_somewhere() -> None:
    for target in LINK.findall(PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).exists(), target
