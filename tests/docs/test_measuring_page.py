"""docs/measuring.md describes the record as it is, and names every warning with the advice that is given."""

import re
from pathlib import Path

import pytest

from flashmore.measuring.record import schema
from flashmore.measuring.warnings import ADVICE

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "measuring.md"
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def fields_without_description(part: dict[str, object], path: str) -> list[str]:
    missing = []
    for name, content in part.items():
        if not isinstance(content, dict):
            continue
        if path.endswith("/properties") and "description" not in content and "$ref" not in content:
            missing.append(f"{path}/{name}")
        missing += fields_without_description(content, f"{path}/{name}")
    return missing


def test_every_number_of_the_environment_and_of_a_row_is_described() -> None:
    told = fields_without_description(schema(), "")
    obvious = {
        "name",
        "backend",
        "step_ms",
        "time_ms",
        "ratios",
        "rows",
        "variants",
        "further_contexts",
        "kind",
    }
    assert not [path for path in told if path.rpartition("/")[2] not in obvious]


@pytest.mark.parametrize("code", ADVICE)
def test_every_warning_is_on_the_page(code: str) -> None:
    assert f"**{code}**" in PAGE.read_text(encoding="utf-8")


def test_links_lead_somewhere() -> None:
    for target in LINK.findall(PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).exists(), target
