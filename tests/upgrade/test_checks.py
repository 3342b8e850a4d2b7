"""What the checks say beside yes and no: references that stay, and notes about what a rewrite leaves."""

import pytest

from flashmore.upgrade.find import find_sites

BY_HAND = """\
import torch
import torch.nn.functional as F


def by_hand(q, k, v):
    return (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
"""
COMPARED = "\n\ndef check(q, k, v):\n    torch.testing.assert_close({call}(q, k, v), by_hand(q, k, v))\n"
TIMED = """\
import time
import torch.nn.functional as F


def bench(q, k, v):
    model = print
    began = time.perf_counter()
    (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    middle = time.perf_counter()
    {call}(q, k, v)
    return began, middle, time.perf_counter()
"""
FUSED = "F.scaled_dot_product_attention"


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        (
            "kernels.py",
            BY_HAND + COMPARED.format(call=FUSED),
            "a reference is left alone: line 10 may compare it with the fused kernel of line 10",
        ),
        (
            "test_model.py",
            BY_HAND + COMPARED.format(call="model"),
            "a reference is left alone: line 10 of this test may compare with it",
        ),
        (
            "model.py",
            TIMED.format(call=FUSED),
            "a reference is left alone: line 7 may time it beside the fused kernel of line 10",
        ),
        ("model.py", TIMED.format(call="model"), ""),
        ("test_model.py", BY_HAND, ""),
        ("model.py", BY_HAND + COMPARED.format(call="model"), ""),
        ("model.py", BY_HAND + f"\n\ndef fused(q, k, v):\n    return {FUSED}(q, k, v)\n", ""),
    ],
)
def test_a_reference_is_left_alone(name: str, source: str, reason: str) -> None:
    site = find_sites(source, f"some/tests/{name}")[0]
    assert (site.verdict, site.reason) == (
        ("refused", reason) if reason else ("rewritten", "softmax of a scaled product, times values")
    )


CAUSAL = """\
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("causal", torch.ones(9, 9).tril())
        self.kept = nn.Dropout(0.1)

    def forward(self, x):
        batch, length, width = x.shape
        scores = x @ x.transpose(-2, -1)  # all pairs
        scores = scores.masked_fill(self.causal[:length, :length] == 0, float("-inf"))
        weights = self.kept(scores.softmax(dim=-1))
        return weights @ x
"""


def test_what_nothing_reads_any_more_and_comments_that_stay_are_noted() -> None:
    other = (
        CAUSAL.split("\n\n\n")[1].replace("class Attention", "class Other").replace(".softmax(dim=-1)", "")
    )
    (site,) = find_sites(f"{CAUSAL}\n\n{other}")
    assert site.notes == (
        "the comments in lines 13-15 are kept, and may no longer be right",
        "`self.causal` (line 8) is no longer read",
    )


def test_a_comment_that_stands_alone_is_noted() -> None:
    above = CAUSAL.replace("  # all pairs", "").replace(
        "        scores = x @", "        # all pairs\n        scores = x @"
    )
    (site,) = find_sites(above)
    assert site.verdict == "rewritten"
    assert not any("comments" in note for note in site.notes), "the call follows it"
    (site,) = find_sites(
        above.replace("        return weights", "\n        # the mean\n        return weights")
    )
    assert site.notes[0] == "the comments in lines 13-16 are kept, and may no longer be right"


def test_what_is_read_elsewhere_is_not_noted() -> None:
    other = "\n    def mask(self):\n        return self.causal\n"
    (site,) = find_sites((CAUSAL + other).replace("  # all pairs", ""))
    assert site.verdict == "rewritten"
    assert site.notes == ()


def test_what_old_lines_under_a_guard_read_is_not_noted() -> None:
    guarded = CAUSAL.replace("return weights @ x", "return weights @ x, weights if self.wanted else None")
    (site,) = find_sites(guarded)
    assert site.guard == "not self.wanted"
    assert site.notes == ()


GUARDED = """\
import torch
from torch import nn


class Attention(nn.Module):
    def forward(self, q, k, v, mask=None, wanted=False):
        weights = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        if wanted:
            self.last = weights
        return weights @ v


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()

    def forward(self, x):
        return self.attention(x, x, x{passed})
"""


@pytest.mark.parametrize("passed", [", wanted=True", ", None, True"])
def test_a_guard_that_no_call_satisfies_is_no_rewriting(passed: str) -> None:
    site = find_sites(GUARDED.format(passed=passed))[0]
    assert site.verdict == "refused"
    assert site.reason == "the fused lines need `not wanted`, which no call in this file gives (line 19)"


@pytest.mark.parametrize(
    "passed", ["", ", wanted=self.wanted", ", *more", ", wanted=True) + self.attention(x, x, x"]
)
def test_a_guard_that_a_call_may_satisfy_stays(passed: str) -> None:
    site = find_sites(GUARDED.format(passed=passed))[0]
    assert (site.verdict, site.guard) == ("rewritten", "not wanted")


@pytest.mark.parametrize(
    ("mask", "assumed"),
    [
        ("scores + (1 - m) * -1e4", "`m` is a tensor with at least two dimensions"),
        ("scores + torch.where(m, 0.0, -1e9)", "`m` is a tensor with at least two dimensions"),
        ("scores + m.float().log()", "`m` is a tensor with at least two dimensions"),
        ("scores.masked_fill(~(m & n), -1e9)", "`m` is a tensor with at least two dimensions"),
        ("(scores + n).masked_fill(m, float('-inf'))", "rows whose keys are all masked are NaN now"),
    ],
)
def test_what_a_mask_must_be_is_said(mask: str, assumed: str) -> None:
    (site,) = find_sites(
        "import torch\n\n\ndef attend(q, k, v, m, n):\n"
        f"    scores = q @ k.mT / 2\n    scores = {mask}\n    return scores.softmax(-1) @ v\n"
    )
    assert site.verdict == "rewritten"
    assert any(each.startswith(assumed) for each in site.assumptions)
