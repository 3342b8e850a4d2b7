"""docs/upgrade-rules.md is what the case files make."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_rules_page_is_made_from_the_case_files() -> None:
    script = ROOT / "scripts" / "document_upgrade_rules.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False, capture_output=True)
    assert done.returncode == 0, "run: python scripts/document_upgrade_rules.py"
