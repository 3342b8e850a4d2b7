"""The kernels that a test reports are those that PyTorch selects for the rewritten lines."""

import time

import pytest

from flashmore.upgrade.find import find_sites
from flashmore.upgrade.verify.fragment import verify_fragment
from flashmore.upgrade.verify.lines import Limits

HEAD = "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n\n\n"
LEARNED_BIAS = """\
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(64, 64))

    def forward(self, q, k, v):
        scores = q @ k.transpose(-2, -1) + self.bias
        return scores.softmax(-1) @ v
"""
TWO_FILLS = """\
def attend(q, k, v, mask):
    scores = q @ k.transpose(-2, -1)
    scores.masked_fill_(mask, -1e9)
    scores.masked_fill_(mask.flip(0), -1e9)
    return scores.softmax(-1) @ v
"""


@pytest.mark.parametrize(
    ("source", "line"),
    [
        pytest.param(
            "def attend(q, k, v):\n    return (q @ k.mT).softmax(-1) @ v\n",
            "flash on the CPU, efficient or flash on CUDA",
            id="plain",
        ),
        pytest.param(
            "def attend(q, k, v):\n    return F.dropout((q @ k.mT).softmax(-1), 0.1) @ v\n",
            "math on the CPU, efficient or flash on CUDA",
            id="the CPU's kernel has no dropout",
        ),
        pytest.param(
            "def attend(q, k, v, drop):\n    return drop((q @ k.mT).softmax(-1)) @ v\n",
            "in training math on the CPU, efficient or flash on CUDA; "
            "in evaluation flash on the CPU, efficient or flash on CUDA",
            id="dropout in training alone",
        ),
        pytest.param(TWO_FILLS, "flash on the CPU, efficient on CUDA", id="a mask of several statements"),
        pytest.param(LEARNED_BIAS, "math on the CPU, efficient on CUDA", id="the mask needs a gradient"),
    ],
)
def test_the_kernels_of_both_modes_are_told(source: str, line: str) -> None:
    (site,) = find_sites(HEAD + source)
    assert site.fragment is not None
    verification = verify_fragment(site.fragment, (), Limits(time.monotonic() + 100, 100, 100, 2**24))
    assert verification.passed, verification.why_not
    assert verification.kernels_line() == line
    assert not verification.unfused
