"""Generated attention, in random spellings: what is rewritten computes the same, forward and backward."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from flashmore.measuring.accuracy import judge
from flashmore.upgrade.edits import apply
from flashmore.upgrade.find import find_sites
from flashmore.upgrade.site import Site
from flashmore.upgrade.verify.verifier import Verifier

B, H, L, S, D, E = 2, 3, 5, 7, 4, 6
NAMES = ("att", "scores", "w", "dots", "sim")
SHAPES = {
    "bhld": ((B, H, L, D), (B, H, S, D), (B, H, S, E)),
    "bghld": ((B, 2, H, L, D), (B, 2, H, S, D), (B, 2, H, S, E)),
    "bld": ((B, L, D), (B, S, D), (B, S, E)),
    "ld": ((L, D), (S, D), (S, E)),
    "lbhd": ((L, B, H, D), (S, B, H, D), (S, B, H, E)),
    "bcl": ((B, D, L), (B, D, S), (B, E, S)),
    "mqa": ((B, H, L, D), (B, S, D), (B, S, E)),
}
PRODUCTS = {
    "bhld": (
        "q @ k.transpose(-2, -1)", "torch.matmul(q, k.mT)", "torch.einsum('bhid,bhjd->bhij', q, k)",
        "torch.matmul(q, k.permute(0, 1, 3, 2))",
    ),
    "bghld": ("q @ k.transpose(-2, -1)", "torch.einsum('bghid,bghjd->bghij', q, k)"),
    "bld": ("torch.bmm(q, k.transpose(1, 2))", "q @ k.mT", "torch.einsum('b i d, b j d -> b i j', q, k)"),
    "ld": ("torch.mm(q, k.t())", "q @ k.T", "torch.einsum('id,jd->ij', q, k)"),
    "lbhd": ("torch.einsum('ibnd,jbnd->bnij', q, k)", "torch.einsum('ibnd,jbnd->ijbn', (q, k))"),
    "bcl": ("torch.einsum('bcl,bcs->bls', q, k)", "torch.bmm(q.transpose(1, 2), k)"),
    "mqa": ("torch.einsum('bhid,bjd->bhij', q, k)",),
}  # fmt: skip
VALUES = {
    "bhld": ("{w} @ v", "torch.matmul({w}, v)", "torch.einsum('bhij,bhjd->bhid', {w}, v)"),
    "bghld": ("{w} @ v", "torch.einsum('bghij,bghjd->bghid', {w}, v)"),
    "bld": (
        "{w} @ v",
        "torch.bmm({w}, v)",
        "torch.bmm(v.mT, {w}.transpose(1, 2)).mT",
    ),
    "ld": ("{w} @ v", "torch.mm({w}, v)"),
    "lbhd": ("torch.einsum('bnij,jbnd->ibnd', {w}, v)", "torch.einsum('ijbn,jbnd->ibnd', {w}, v)"),
    "bcl": ("torch.einsum('bls,bcs->bcl', {w}, v)", "torch.bmm(v, {w}.permute(0, 2, 1))"),
    "mqa": ("torch.einsum('bhij,bjd->bhid', {w}, v)",),
}
SCALES = ("", "{s} = {s} * 0.5", "{s} *= 0.25", "{s} = {s} / math.sqrt(4)", "{s}.mul_(0.5)",
          "{s} = {s} * q.size(0)",
          "{s} = {s} * temperature.exp()")  # fmt: skip
MASKS = ("", "{s} = {s}.masked_fill(mask, float('-inf'))", "{s} = {s}.masked_fill(mask, -1e9)",
         "{s} = torch.where(~mask, {s}, torch.finfo({s}.dtype).min)", "{s}.masked_fill_(mask, -torch.inf)",
         "{s} = {s} + bias", "{s} += bias",
         "if mask is not None:\n        {s} = {s}.masked_fill(mask == 1, -1e9)",
         "{s} = {s} - {s}.amax(dim={dim}, keepdim=True)", "{s} = {s} - {s}.max()",
         "{s} = {s}.masked_fill(mask, -1e9)\n    {s}.masked_fill_(mask.flip(0), -1e9)",
         "{s} = {s} + bias\n    {s} = {s}.masked_fill(mask, -1e9)",
         "{s} = {s} + bias\n    {s} = {s}.masked_fill(mask, float('-inf'))")  # fmt: skip
SOFTMAX = ("F.softmax({s}, dim={dim})", "{s}.softmax({dim})",
           "torch.softmax({s}, dim={dim}, dtype=torch.float64)",
           "nn.Softmax(dim={dim})({s})", "soft({s}, {dim}, 0.0, True)", "stable({s}, dim={dim})",
           "(torch.softmax if drop.training else stable)({s}, dim={dim})",
           "{s}.float().softmax(dim={dim}).type_as({s})")  # fmt: skip
HELPERS = """
def soft(x, dim, p, training):
    return F.dropout(F.softmax(x, dim=dim), p, training)


def stable(x, dim, alpha=8**2):
    x = x / alpha
    x = x - x.amax(dim=dim, keepdim=True).detach()
    return (x * alpha).softmax(dim=dim)
"""
WITHOUT_NANS = ("", "", "", "{w} = torch.nan_to_num({w})", "{w} = {w}.masked_fill(torch.isnan({w}), 0)",
                "{w} = torch.where({w} != {w}, torch.zeros_like({w}), {w})")  # fmt: skip
ZEROS = ("", "{w} = {w}.masked_fill(mask, 0.0)", "{w} = torch.where(~mask, {w}, 0.0)",
         "{w} = {w}.masked_fill(mask.all(dim=-1, keepdim=True), 0)")  # fmt: skip
DROPOUTS = ("", "{w} = F.dropout({w}, 0.0)", "{w} = F.dropout({w}, p=0.5, training=False)", "{w} = drop({w})")


@dataclass(frozen=True)
class Program:
    """One spelling."""

    layout: str
    source: str
    scores: tuple[int, ...]
    dtype: torch.dtype
    autocast: torch.dtype | None
    """Under CPU autocast to it, or as it is."""


DTYPES = (torch.float64, torch.float64, torch.float32, torch.float16, torch.bfloat16)
AUTOCASTS = (None, None, torch.float16, torch.bfloat16)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    layout = draw(st.sampled_from(sorted(SHAPES)))
    name, weights = draw(st.sampled_from(NAMES)), draw(st.sampled_from((*NAMES, "p")))
    index = draw(st.integers(0, len(PRODUCTS[layout]) - 1))
    last = "ijbn" not in PRODUCTS[layout][index]
    values = (
        [each for each in VALUES[layout] if ("ijbn" in each) != last] if layout == "lbhd" else VALUES[layout]
    )
    dim = "-1" if last else "1"
    lines = [f"{name} = {PRODUCTS[layout][index]}"]
    steps = [draw(st.sampled_from(SCALES)), draw(st.sampled_from(MASKS))]
    lines += [each.format(s=name, dim=dim) for each in draw(st.permutations(steps)) if each]
    lines += draw(st.sampled_from(([], [], [], ["del q, k"])))
    lines.append(f"{weights} = {draw(st.sampled_from(SOFTMAX)).format(s=name, dim=dim)}")
    alike = steps[1] in MASKS[1:4] and last  # the weights may be masked as the scores are
    more = (draw(st.sampled_from(ZEROS if alike else WITHOUT_NANS)), draw(st.sampled_from(DROPOUTS)))
    lines += [each.format(w=weights) for each in draw(st.permutations(more)) if each]
    result = draw(st.sampled_from(values)).format(w=weights)
    lines += draw(st.sampled_from(([f"return {result}"], [f"out = {result}", "return out"])))
    body = "\n    ".join(lines)
    head = "import math\nimport torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n"
    source = f"{head}\n{HELPERS}\n\ndef attend(q, k, v, mask, bias, temperature, drop):\n    {body}\n"
    shapes = {"bghld": (B, 2, H, L, S), "bld": (B, L, S), "ld": (L, S), "bcl": (B, L, S)}
    scores = shapes.get(layout, (B, H, L, S) if last else (L, S, B, H))
    return Program(layout, source, scores, draw(st.sampled_from(DTYPES)), draw(st.sampled_from(AUTOCASTS)))


def run(source: str, program: Program, dtype: torch.dtype) -> list[torch.Tensor]:
    """The output and the gradients of everything that goes in; float64 is never under autocast.

    Every dtype is given the same numbers: those that float64 and the drawn dtype both have.
    """
    names: dict[str, Any] = {}
    exec(compile(source, "<generated>", "exec"), names)
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
        return numbers.to(program.dtype).to(dtype).requires_grad_()

    q, k, v = (draw(shape) for shape in SHAPES[program.layout])
    bias, temperature = draw(program.scores), draw(())
    keys = program.scores.index(S)
    mask = torch.rand(program.scores, generator=generator) < 0.4
    mask.select(keys, 0).fill_(False)
    inputs = (q, k, v, bias, temperature)
    drop = torch.nn.Dropout(0.5).eval()
    autocast = program.autocast if dtype is not torch.float64 else None
    with torch.autocast("cpu", dtype=autocast) if autocast else nullcontext():
        out = names["attend"](q.clone(), k.clone(), v.clone(), mask, bias, temperature, drop)
    cotangent = (
        torch.randn(out.shape, generator=generator, dtype=torch.float64).to(program.dtype).to(out.dtype)
    )
    gradients = torch.autograd.grad(out, inputs, cotangent, allow_unused=True)
    return [out.detach(), *(torch.zeros(()) if each is None else each for each in gradients)]


def check(program: Program, verifier: Verifier) -> str:
    """The verdict, which must be right."""
    sites = find_sites(program.source)
    assert len(sites) == 1, program.source
    if sites[0].verdict == "refused":
        return "refused"
    after = apply(program.source, sites)
    assert {site.verdict for site in find_sites(after)} == {"already fused"}
    if program.dtype is torch.float64:
        close(program, after)
    else:
        as_accurate(program, sites[0], after, verifier)
    return "rewritten"


def close(program: Program, after: str) -> None:
    """In float64 both are the same but for rounding."""
    for old, new in zip(
        *(run(each, program, torch.float64) for each in (program.source, after)), strict=True
    ):
        assert old.shape == new.shape
        finite = ~old.isnan()  # a product with -inf has no gradient by hand
        old, new = old[finite], new[finite]
        close = 1e-4 if ".float()" in program.source else 1e-9
        torch.testing.assert_close(new, old, rtol=close, atol=close, msg=lambda text: f"{text}\n{after}")


def as_accurate(program: Program, site: Site, after: str, verifier: Verifier) -> None:
    """Where the old lines take the dtype, the new ones do and are as accurate, or no test holds."""
    try:
        old = run(program.source, program, program.dtype)
    except (RuntimeError, TypeError):
        return
    if wrong := _wrong(program, after, old):
        verifier.spent.clear()  # every program is a file of its own
        assert not verifier.verify(site).passed, f"{wrong}\n{program}\n{after}"


def _wrong(program: Program, after: str, old: list[torch.Tensor]) -> str:
    try:
        new = run(after, program, program.dtype)
    except (RuntimeError, TypeError) as error:
        return str(error)
    right = run(program.source, program, torch.float64)
    finite = [one.isfinite() & two.isfinite() for one, two in zip(old, right, strict=True)]
    largest = max(float(one[kept].abs().max()) for one, kept in zip(right, finite, strict=True) if kept.any())
    dtypes = [dtype for dtype in (program.dtype, program.autocast) if dtype is not None]
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    for got, near, exact, kept in zip(new, old, right, finite, strict=True):
        if got.dtype != near.dtype:
            return f"{got.dtype} instead of {near.dtype}"
        if kept.any():
            found = judge("", got[kept], near[kept], exact[kept].double(), largest_of_all=largest, eps=eps)
            if not found.good:
                return str(found)
    return ""


def test_generated_attention_is_rewritten_rightly_and_seldom_refused(verifier: Verifier) -> None:
    counts = {"rewritten": 0, "refused": 0}

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(programs())
    def count(program: Program) -> None:
        counts[check(program, verifier)] += 1

    count()
    assert counts["rewritten"] > 9 * counts["refused"], counts


@pytest.mark.long
@settings(max_examples=5000, deadline=None)
@given(program=programs())
def test_much_generated_attention_is_rewritten_rightly_or_refused(
    program: Program, verifier: Verifier
) -> None:
    check(program, verifier)
