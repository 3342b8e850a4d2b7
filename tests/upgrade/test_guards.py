"""Programs that ask for flags and their negations: rewritten, they return what they did, for every answer."""

from itertools import product
from typing import Any

import pytest
import torch

from flashmore.upgrade.edits import apply
from flashmore.upgrade.find import find_sites

HEAD = """\
import torch
import torch.nn.functional as F


def attend(q, k, v, flag=False, other=False):
    scores = q @ k.transpose(-2, -1)
"""
SCORES = (
    "    scores = scores * (0.5 if not flag else 2.0)\n",
    "    if not flag:\n        scores = scores * 0.5\n",
    "    if flag:\n        scores = scores * 0.5\n",
    "    if not (not flag):\n        scores = scores / 3\n    if not other:\n        scores = scores * 2\n",
    "    if flag:\n        scores = scores.tanh()\n    if not other:\n        scores = scores * 2\n",
)
WEIGHTS = (
    "    weights = scores.softmax(dim=-1)\n",
    "    if not other:\n        weights = scores.softmax(dim=-1)\n"
    "    else:\n        weights = F.softmax(scores, dim=-1) * 2\n",
    "    weights = scores.softmax(dim=-1)\n    if not other:\n"
    "        with torch.enable_grad():\n            weights = weights.tanh()\n",
)
RETURNED = (
    "    if flag:\n        return output, weights\n    return output, None\n",
    "    if not flag:\n        return output, weights\n    return output, None\n",
    "    return output, None if not flag else weights\n",
    "    return (output, None) if not other else (output, scores)\n",
)


@pytest.mark.parametrize("parts", [*product(SCORES, WEIGHTS, RETURNED)])
def test_a_guard_is_no_opposite(parts: tuple[str, str, str]) -> None:
    scores, weights, returned = parts
    before = f"{HEAD}{scores}{weights}    output = weights @ v\n{returned}"
    after = apply(before, [site for site in find_sites(before) if site.verdict == "rewritten"])
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    exec(before, old)
    exec(after, new)
    q, k, v = torch.randn(3, 2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    for flags in product((False, True), repeat=2):
        for was, now in zip(old["attend"](q, k, v, *flags), new["attend"](q, k, v, *flags), strict=True):
            assert (was is None) == (now is None)
            if was is not None:
                torch.testing.assert_close(now, was)


def test_most_of_them_are_rewritten() -> None:
    sources = (f"{HEAD}{s}{w}    output = weights @ v\n{r}" for s, w, r in product(SCORES, WEIGHTS, RETURNED))
    rewritten = [any(site.verdict == "rewritten" for site in find_sites(source)) for source in sources]
    assert sum(rewritten) >= 38
