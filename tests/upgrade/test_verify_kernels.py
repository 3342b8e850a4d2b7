"""The kernels that a test reports are those that PyTorch selects for the rewritten lines."""

import time

import pytest
import torch
from torch.nn.attention import SDPBackend

from flashmore.upgrade.find import find_sites
from flashmore.upgrade.site import Input
from flashmore.upgrade.verify.family import Case
from flashmore.upgrade.verify.fragment import verify_fragment
from flashmore.upgrade.verify.lines import Limits
from flashmore.upgrade.verify.result import MASKED_ROWS
from flashmore.upgrade.verify.tensors import Values

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


@pytest.mark.parametrize("shape", ["square", "L < S", "L = 1", "T = 1", "longer than a tile"])
def test_synthetic_tensors_are_such_that_the_fused_kernel_runs(shape: str) -> None:
    """Otherwise a test compares the old lines with PyTorch's unfused kernel, and never sees the other."""
    axes = {"q": ("B", "H", "L", "D"), "k": ("B", "H", "S", "D"), "v": ("B", "H", "S", "E")}
    inputs = [Input(name, name, "tensor", each) for name, each in axes.items()]
    arguments = Values(Case(shape=shape), inputs, frozenset()).arguments(double=False, dropout_p=0.0)
    q, k, v = (torch.as_tensor(each.value) for each in arguments)
    assert SDPBackend(torch._fused_sdp_choice(q, k, v)) == SDPBackend.FLASH_ATTENTION


def test_rows_that_fused_kernels_differentiate_wrongly_are_an_assumption() -> None:
    source = "def attend(q, k, v, mask):\n    return ((q @ k.mT) + mask.float()).softmax(-1) @ v\n"
    (site,) = find_sites(HEAD + source)
    assert site.fragment is not None
    verification = verify_fragment(site.fragment, (), Limits(time.monotonic() + 100, 100, 100, 2**24))
    assert verification.passed, verification.why_not
    assert (
        "no gradient comes from rows whose keys are all masked: fused kernels compute another one"
        in verification.assumptions
    )
    kinds = {case.name for case in verification.cases if case.detail == MASKED_ROWS}
    assert kinds
    assert all("one row fully masked" in name and "MATH" not in name for name in kinds)


@pytest.mark.parametrize(("lowest", "why_not"), [
    ("-1e9", ""),
    ("torch.finfo(torch.float32).min", "one row fully masked, float32: out differs"),
])  # fmt: skip
def test_two_masks_may_hide_a_row_together(lowest: str, why_not: str) -> None:
    """Where one of them is clamped for bfloat16 and the other is not, such a row is no mean of all values."""
    source = f"""\
def attend(q, k, v, pad):
    later = torch.full((q.size(-2), k.size(-2)), {lowest}).triu(1)
    return ((q @ k.mT) + later + (1.0 - pad[:, None, None, :]) * {lowest}).softmax(-1) @ v
"""
    (site,) = find_sites(HEAD + source)
    assert site.fragment is not None
    verification = verify_fragment(site.fragment, (), Limits(time.monotonic() + 100, 100, 100, 2**24))
    assert verification.passed == (not why_not)
    assert why_not in (verification.why_not or "")
    gradients = "no gradient comes from rows whose keys are all masked: fused kernels compute another one"
    assert (gradients in verification.assumptions) == verification.passed
