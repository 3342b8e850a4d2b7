"""Every rule's case file: what must be left alone, what must be rewritten, and exactly how."""

import ast
import re

import pytest

from case_files import CASES, Case, cases
from flashmore.upgrade.edits import apply
from flashmore.upgrade.find import find_sites


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
    if verdict != "already fused":  # as a call beside it may be
        sites = [site for site in sites if site.verdict != "already fused"]
    assert {site.verdict for site in sites} == {verdict}
    site = sites[0]
    if verdict == "rewritten":
        assert apply(case.before, sites) == case.after
        rule, _, guard = reason.partition(", if ")
        assert site.rule == rule
        assert (site.guard or "") == guard
        assert site.fragment is not None, "nothing to test it with"
    else:
        assert site.reason == reason
        assert case.after is None
        assert site.edits == ()


@pytest.mark.parametrize("case", [each for each in cases() if each.after], ids=lambda case: case.name)
def test_a_second_time_changes_nothing(case: Case) -> None:
    assert case.after is not None
    ast.parse(case.after)
    again = find_sites(case.after)
    helpers = [site for site in again if site.reason.startswith("the argument `scores`")]  # which stay
    assert {site.verdict for site in again if site not in helpers} <= {"already fused"}
    assert again or "scaled_dot_product_attention" not in case.after
    assert apply(case.after, again) == case.after


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
    assert (site.verdict, site.reason) == ("refused", "`torch` may be redefined: see line 6")


def test_a_maximum_that_is_no_builtin_is_not_written() -> None:
    source = (
        f"{HEAD}\n\ndef attend(q, k, v, mask):\n    scores = q @ k.transpose(-2, -1) + mask\n"
        "    y = scores.softmax(dim=-1) @ v\n    most = other\n    return y, most\n"
    )
    assert "max(torch" in called(source)[1]
    (site,) = find_sites(source.replace("most", "max"))
    assert (site.verdict, site.reason) == ("refused", "`max` is redefined: see line 8")


CHANGES = """import contextlib
import torch


async def attend(q, k, v, w, c, load):
    w = torch.softmax(q @ k.transpose(-2, -1) + w, dim=-1)
    y = w @ v
    {line}
    return y * w
"""
PERHAPS = (
    "with c: w = load()", "with contextlib.suppress(KeyError): w = load()", "async with c: w = load()",
    "with c, load() as w: pass", "with torch.no_grad(), c: w = load()", "with c: return (w := load())",
    "[w := n for n in c]", "[n for n in c if (w := n)]", "any((w := n) for n in c)",
    "{n: (w := n) for n in c}", "[m for n in c for m in (w := n)]", "x = 1 < c < (w := load())",
    "assert c, (w := load())", "x = c and (w := load())", "x = c or (w := load())",
    "x = (w := load()) if c else 1", "while c and (w := load()): pass",
    "while c:\n        w = load()", "for w in c: pass", "async for w in c: pass",
    "for n in c:\n        break\n    else:\n        w = load()",
    "while c:\n        break\n    else:\n        w = load()",
    "match c:\n        case [w, 1]: pass\n        case _ if (w := load()): pass",
    "match c:\n        case 1: w = load()",
    "match c:\n        case w if load(): return 1",
    "try: w = load()\n    except ValueError: pass",
    "try: return load()\n    except ValueError: w = load()\n    except KeyError: pass",
    "try: w = load()\n    except* ValueError: pass",
    "f = lambda: (w := load())", "x = lambda w=1: w", "x = [w for w in c]", "class C: w = load()",
    "x = {1: (w := load()) for n in c}", "del c",
)  # fmt: skip


@pytest.mark.parametrize("line", PERHAPS)
def test_what_may_leave_a_name_as_it_was_binds_it_perhaps(line: str) -> None:
    (site,) = find_sites(CHANGES.format(line=line))
    assert site.verdict == "refused", line
    if "pass" not in line:
        return
    (site,) = find_sites(CHANGES.format(line=f"{line}\n    w = load()"))
    assert site.verdict == "rewritten", site.reason


@pytest.mark.parametrize(
    "line",
    [
        "w = load()", "with torch.no_grad(): w = load()", "with contextlib.nullcontext() as w: pass",
        "(w := load())", "x = [*(w := load())]", "x = 1 < (w := load()) < c",
        "assert (w := load())",
        "x = {(w := load()): w}",
    ],
)  # fmt: skip
def test_what_certainly_binds_a_name_again_frees_the_weights(line: str) -> None:
    (site,) = find_sites(CHANGES.format(line=line))
    assert site.verdict == "rewritten", site.reason


LEFT_EARLY = """import torch


def attend(q, k, v, w, c, load):
    y = 0
    {head}
        w = torch.softmax(q @ k.transpose(-2, -1) + w, dim=-1)
        y = w @ v
        {middle}
        w = load()
    {tail}
    return y * w
"""


@pytest.mark.parametrize(
    ("head", "middle", "tail"),
    [
        ("with c:", "load()", ""), ("async with c:", "load()", ""),
        ("try:", "load()", "except ValueError: pass"),
        ("try:", "load()", "except ValueError:\n        y = w"),
        ("try:", "load()", "except* ValueError: pass\n    except* KeyError: y = w"),
        ("try:", "load()", "finally:\n        load(w)"),
        ("for n in c:", "if n: break", ""), ("for n in c:", "if n: continue", ""),
        ("while c:", "if load(): break", ""), ("for n in c:", "with c: load()", ""),
    ],
)  # fmt: skip
def test_a_block_that_may_be_left_early_leaves_names_as_they_are_there(
    head: str, middle: str, tail: str
) -> None:
    source = LEFT_EARLY.format(head=head, middle=middle, tail=tail)
    (site,) = find_sites(source.replace("def attend", "async def attend"))
    assert site.verdict == "refused"


def test_a_context_of_torchs_leaves_no_block_early() -> None:
    source = LEFT_EARLY.format(head="with torch.no_grad():", middle="load()", tail="")
    (site,) = find_sites(source)
    assert site.verdict == "rewritten", site.reason


READS = (
    "x = {c: w, (w := load()): 1}", "c[w] += (w := load())", "g = (w * n for n in c)",
    "def g(n=(w := load())): return n", "@load(w)\n    def g(n=(w := load())): return n",
    "g = lambda: [[w for w in c], w]", "def g(n=lambda w: w): return w", "class C: n: w = 1", "(w.x): int",
    "async def g(): return [w async for n in c]",
)  # fmt: skip


@pytest.mark.parametrize("line", READS)
def test_a_use_of_the_weights_is_seen_in_the_order_in_which_python_evaluates(line: str) -> None:
    source = CHANGES.format(line=f"{line}\n    w = load()")
    (site,) = find_sites(source)
    assert site.verdict == ("rewritten" if line.startswith("def g(n=(w") else "refused")


PRIVATE = """import torch


class A(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.__s = 0.5

    def forward(self, q, k, v):
        {stored} = torch.softmax(q @ k.transpose(-2, -1) * {scale}, dim=-1)
        out = {stored} @ v
        return out, {read}
"""


@pytest.mark.parametrize(
    ("stored", "scale", "read", "reason"),
    [
        ("__w", 2, "_A__w", "`__w` in line 10 is a private name of its class"),
        ("_A__w", 2, "__w", "`__w` in line 12 is a private name of its class"),
        ("w", "self.__s", "self._A__s", "`__s` in line 10 is a private name of its class"),
        ("__w__", 2, "q", None), ("w", "self.__s", "q", None),
    ],
)  # fmt: skip
def test_a_private_name_is_left_alone(stored: str, scale: object, read: str, reason: str | None) -> None:
    (site,) = find_sites(PRIVATE.format(stored=stored, scale=scale, read=read))
    if reason is None:
        assert site.verdict == "rewritten", site.reason
    else:
        assert (site.verdict, site.reason) == ("refused", reason)
