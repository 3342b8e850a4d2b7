"""Every rule's case file: what must be left alone, what must be rewritten, and exactly how."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from flashmore.upgrade.edits import apply, diff
from flashmore.upgrade.find import find_sites

CASES = Path(__file__).parent / "cases"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANSWER = re.compile(r"^> (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """One section of a case file."""

    name: str
    before: str
    after: str | None
    answer: str


def cases() -> list[Case]:
    found = []
    for path in sorted(CASES.glob("*.md")):
        for section in re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            title = section.split("\n", 1)[0]
            blocks = BLOCK.findall(section)
            answer = ANSWER.search(section)
            assert blocks, f"{path.name}: {title} has no code"
            assert answer, f"{path.name}: {title} has no answer"
            found.append(
                Case(f"{path.stem}: {title}", blocks[0], blocks[1] if len(blocks) > 1 else None, answer[1])
            )
    return found


def test_leave_alone_cases_come_first() -> None:
    for path in sorted(CASES.glob("*.md")):
        titles = re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        alone = [title.startswith("Leave alone") for title in titles]
        assert alone == sorted(alone, reverse=True), path.name
        assert any(alone), f"{path.name} has no leave-alone case"


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_case_is_answered_as_its_page_says(case: Case) -> None:
    sites = find_sites(case.before)
    if case.answer == "no report":
        assert sites == []
        return
    verdict, _, reason = case.answer.partition(": ")
    assert {site.verdict for site in sites} == {verdict}
    site = sites[0]
    if verdict == "rewritten":
        assert apply(case.before, sites) == case.after
        rule, _, guard = reason.partition(", if ")
        assert site.rule == rule
        assert (site.guard or "") == guard
        assert site.fragment is not None, "nothing to prove it with"
    else:
        assert site.reason == reason
        assert case.after is None
        assert site.edits == ()


@pytest.mark.parametrize("case", [each for each in cases() if each.after], ids=lambda case: case.name)
def test_a_second_time_changes_nothing(case: Case) -> None:
    assert case.after is not None
    ast.parse(case.after)
    again = find_sites(case.after)
    assert {site.verdict for site in again} == {"already fused"}
    assert apply(case.after, again) == case.after
    assert diff(case.after, case.after, "model.py") == ""
