"""Write docs/upgrade-rules.md from the case files that the tests hold the rules to.

    python scripts/document_upgrade_rules.py [--check]

With --check nothing is written: exit 1 says that the page is not what the case files make.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "upgrade" / "cases"
PAGE = ROOT / "docs" / "upgrade-rules.md"
ORDER = ("plain", "causal", "boolean-mask", "additive-mask", "bias", "guard")
HEAD = """# The rules of `flashmore upgrade`

What is rewritten, what is left alone, and why. The page is made from the case files in `tests/upgrade/cases`,
which the tests hold the rules to: `python scripts/document_upgrade_rules.py` makes it again.

"""


def page() -> str:
    """The page: one chapter a case file, its sections one level deeper."""
    files = {path.stem: path.read_text(encoding="utf-8") for path in sorted(CASES.glob("*.md"))}
    names = [*(name for name in ORDER if name in files), *(name for name in files if name not in ORDER)]
    return HEAD + "\n".join(_deeper(files[name]) for name in names)


def _deeper(text: str) -> str:
    """Headings one level down; code keeps its comments."""
    parts = re.split(r"(^```python\n.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```") else re.sub(r"^#", "##", part, flags=re.MULTILINE) for part in parts
    )


def main() -> int:
    """Writes or checks the page."""
    wanted = page()
    if "--check" in sys.argv[1:]:
        same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted
        print(f"{PAGE.relative_to(ROOT)} is {'up to date' if same else 'not what the case files make'}")
        return 0 if same else 1
    PAGE.write_text(wanted, encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
