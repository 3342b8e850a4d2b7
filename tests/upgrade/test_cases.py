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


HEAD = "import torch\nimport torch.nn.functional as F\n"
ATTEND = """

def attend(q, k, v, other):
    y = torch.softmax(q @ k.transpose(-2, -1), dim=-1) @ v
    {inside}
    return y
"""
CLAIMED_INSIDE = (
    "F = 3", "B, (*F, H) = y.shape", "for F in range(3): pass", "with other() as F: pass",
    "try: other()\n    except ValueError as F: pass", "import other as F", "from other import F",
    "def F(): pass", "class F: pass", "match other:\n        case [F, *_]: pass",
    "match other:\n        case {**F}: pass", "(F := 3)", "[F := n for n in range(3)]", "F: int", "F += 1",
    "del F", "global F", "g = lambda n=(F := 3): n",
)  # fmt: skip
CLAIMED_BELOW = (
    "F = 3", "A, F = 1, 2", "for F in range(3): pass", "class F: pass", "def F(): pass", "del F",
    "F: int = 3", "def init():\n    global F\n    F = 3", "class A:\n    global F\n    F = 3",
    "try:\n    from kornia import filters as F\nexcept ImportError: pass",
    "from fractions import Fraction as F",
    "if other: import numpy as F", "with other as F: pass", "try: pass\nexcept ValueError as F: pass",
    "match 3:\n    case F: pass", "def g(n=(F := 3)): pass", "[F := n for n in range(3)]",
)  # fmt: skip
CALLED = re.compile(r"(\S+)scaled_dot_product_attention")


def called(source: str) -> tuple[str, str]:
    """How a rewriting calls SDPA, and the new file."""
    (site,) = find_sites(source)
    assert site.verdict == "rewritten", site.reason
    after = apply(source, [site])
    return CALLED.findall(after)[0], after


@pytest.mark.parametrize("line", CLAIMED_INSIDE)
def test_a_name_that_a_function_binds_anywhere_is_not_the_modules(line: str) -> None:
    assert called(HEAD + ATTEND.format(inside=line))[0] == "torch.nn.functional."


@pytest.mark.parametrize("line", CLAIMED_BELOW)
@pytest.mark.parametrize("above", [False, True])
def test_a_name_that_a_module_binds_twice_is_not_the_imports(line: str, above: bool) -> None:
    function = ATTEND.format(inside="pass")
    source = f"{HEAD}{line}\n{function}" if above else f"{HEAD}{function}\n{line}\n"
    assert called(source)[0] == "torch.nn.functional."


def test_an_import_below_a_function_is_too_late_for_its_first_call() -> None:
    source = "import torch\n" + ATTEND.format(inside="pass") + "\nimport torch.nn.functional as F\n"
    assert called(source)[0] == "torch.nn.functional."


@pytest.mark.parametrize("line", ["", "import torch.nn.functional as F\n", "class A:\n    F = 3\n"])
def test_a_name_that_nothing_else_binds_is_taken(line: str) -> None:
    assert called(HEAD + line + ATTEND.format(inside="pass"))[0] == "F."


def test_torch_is_imported_as_f_where_its_own_name_is_taken() -> None:
    method = ATTEND.replace("torch.softmax(q @ k.transpose(-2, -1), dim=-1)", "(q @ k.mT).softmax(-1)")
    source = "import torch\n" + method.format(inside="torch = other")
    name, after = called(source)
    assert name == "F."
    assert "import torch.nn.functional as F\n" in after
    (site,) = find_sites(source.replace("torch = other", "torch, F = other"))
    assert (site.verdict, site.reason) == ("refused", "`torch` may mean something else: see line 6")


def test_a_maximum_that_is_no_builtin_is_not_written() -> None:
    source = (
        f"{HEAD}\n\ndef attend(q, k, v, mask):\n    scores = q @ k.transpose(-2, -1) + mask\n"
        "    y = scores.softmax(dim=-1) @ v\n    most = other\n    return y, most\n"
    )
    assert "max(torch" in called(source)[1]
    (site,) = find_sites(source.replace("most", "max"))
    assert (site.verdict, site.reason) == ("refused", "`max` means something else: see line 8")
