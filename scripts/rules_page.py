"""The rules of `flashmore upgrade`: as a table, and as chapters from the case files of the tests."""

import re
from pathlib import Path

from flashmore.upgrade.rules import RULES

CASES = Path(__file__).resolve().parents[1] / "tests" / "upgrade" / "cases"
ORDER = ("plain", "causal", "boolean-mask", "additive-mask", "bias", "guard")


def chapters() -> str:
    """One chapter per case file, its sections one level deeper: attention's first, then by code."""
    files = {path.stem: path.read_text(encoding="utf-8") for path in sorted(CASES.glob("*.md"))}
    names = [*(name for name in ORDER if name in files), *(name for name in files if name not in ORDER)]
    names.sort(key=lambda name: _code(files[name]))
    return "\n".join(_deeper(files[name]) for name in names)


def _code(text: str) -> str:
    """The code in a chapter's title; attention's chapters are its variants, and have none."""
    found = re.search(r"\(FM\d+", text.partition("\n")[0])
    return found[0] if found else ""


def table() -> str:
    """All rules, one line each, with links to their pages."""
    lines = [f"| [{each.code}](rules/{each.code}.md) | `{each.name}` | {each.summary} |" for each in RULES]
    return "\n".join(["| code | name | what it does |", "|---|---|---|", *lines, ""])


def _deeper(text: str) -> str:
    """Headings one level down; code keeps its comments."""
    parts = re.split(r"(^```python\n.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```") else re.sub(r"^#", "##", part, flags=re.MULTILINE) for part in parts
    )
