"""Attention inside other code, generated: a rewritten program is still the same program, or it is not tested.

Statements of every kind stand before, between and after the lines of an attention: they read, delete,
capture, change or alias what these lines use, draw random numbers, count, or change the mode of torch.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from flashmore.upgrade.edits import apply
from flashmore.upgrade.find import find_sites
from flashmore.upgrade.verify.verifier import Verifier

HEAD = """\
import math
import random
import torch
import torch.nn as nn
import torch.nn.functional as F

seen, total = [], 0
soften = F.softmax


def note(x):
    seen.append(x)
    return x


def halved(x):
    return x / 2


def kept(x):
    return x


def rescaled(x):
    return x.mul_(0.5)


class Store:
    scale = 0.5

    def to(self, scale):
        self.scale = scale

    @property
    def counted(self):
        self.scale = self.scale * 2
        return self.scale


store = Store()
"""
PRODUCTS = ("q @ k.transpose(-2, -1)", "torch.matmul(q, k.mT)", "torch.einsum('bhid,bhjd->bhij', q, k)")
VALUES = ("w @ v", "torch.matmul(w, v)", "torch.einsum('bhij,bhjd->bhid', w, v)")
STEPS = (
    "s = s * 0.5",
    "s = s / math.sqrt(q.size(-1))",
    "s *= self.scale",
    "s = s * store.scale",
    "s = s * store.counted",
    "s = s / self.scale",
    "s = s.masked_fill(mask, float('-inf'))",
    "s = s.masked_fill(mask, -1e9)",
    "s = s + bias",
    "s += bias",
    "s = s.masked_fill(self.causal[:s.size(-2), :s.size(-1)] == 0, float('-inf'))",
    "s = halved(s)",
    "s = rescaled(s)",
    "s = kept(s)",
    "s = note(s)",
    "s = s.clamp(max=1.0)",
    "s = s.float()",
    "s = s - s.amax(-1, keepdim=True)",
)
SOFTMAXES = (
    "s.softmax(-1)",
    "F.softmax(s, dim=-1)",
    "torch.softmax(s, -1)",
    "soften(s, dim=-1)",
    "F.softmax(s.float(), dim=-1).type_as(q)",
    "F.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype)",
    "nn.Softmax(dim=-1)(s)",
    "self.softmax(s)",
)
DROPOUTS = (
    "w = self.drop(w)",
    "w = F.dropout(w, 0.0, self.training)",
    "w = kept(w)",
    "w = w * 1.0",
    "w = w.masked_fill(mask, 0.0)",
    "w = note(w)",
)
ANYWHERE = (
    "x = q",
    "x = q.sum()",
    "x = torch.rand_like(q)",
    "x = self.drop(v)",
    "seen.append(len(seen))",
    "global total\ntotal = total + 1",
    "store.last = q",
    "store.keys = k\nstore.keys.mul_(2)",
    "q = q + 1",
    "k = k * 1.5",
    "v = v.relu()",
    "q.mul_(1.5)",
    "k.add_(0.5)",
    "v.neg_()",
    "mask = ~mask",
    "qq = q\nqq.mul_(2)",
    "vv = v.view(-1)\nvv.add_(1)",
    "kk = k.transpose(0, 1)\nkk.mul_(0.5)",
    "if flag:\n    q = q * 2",
    "if flag:\n    k.mul_(2)",
    "if flag:\n    return {'early': q}",
    "for _ in range(2):\n    v = v + 1",
    "while total < 0:\n    pass",
    "try:\n    q = q * 2\nexcept ValueError:\n    pass",
    "with torch.no_grad():\n    q = q * 2",
    "with torch.no_grad():\n    k.mul_(2)",
    "torch.manual_seed(5)",
    "assert q.size(0) > 0",
    "random.seed(3)",
    "self.calls += 1",
    "self.scale = self.scale * 2",
    "bias = bias * 2",
    "self.causal[0] = 1",
    "f = lambda: q",
    "print_ = print",
    "del bias\nbias = q.new_ones(1)",
    "match flag:\n    case True:\n        q = q * 3\n    case _:\n        pass",
    "q, k = k, q",
    "(x := v.mul_(1.5))",
    "q = q.half().float()",
    "v = v.double()",
    "k = k.detach()",
    "q = q.contiguous()",
    "q = q[:, :, :3]",
    "torch.set_grad_enabled(False)",
    "torch.set_grad_enabled(True)",
    "x = store.counted",
    "store.to(2.0)",
    "if store.counted > 4:\n    q = q * 2",
)
AFTER_SCORES = (
    "x = s",
    "x = s.sum()",
    "x = s.detach()",
    "store.scores = s",
    "seen.append(s)",
    "f = lambda: s.sum()",
    "if flag:\n    s = s * 2",
    "s = s if flag else s * 3",
    "s.mul_(0.5)",
    "s[..., 0] = 0.0",
    "s[:, 0] += 1",
    "self.last = s.detach()",
    "y = [s for _ in range(1)]",
    "z = s.shape",
    "s = s.view(s.shape)",
    "n = s.size(-1)",
    "match flag:\n    case True:\n        s = s.clamp(max=0.5)\n    case _:\n        pass",
    "for _ in range(2):\n    s = s * 0.5",
    "with torch.no_grad():\n    s = s * 1.0",
    "s = s + torch.rand_like(s)",
    "def late(x=s):\n    return x",
    "class Local:\n    held = s",
    "exec('q = q')",
    "s = eval('s * 1.0')",
    "while flag:\n    s = s * 0.5\n    break",
    "try:\n    s = s * 0.5\nfinally:\n    pass",
    "assert s.dim() == 4",
    "rescaled(k.detach())",
    "F.relu(q.detach(), True)",
    "k.data = k.data * 2",
    "other = self\nother.scale = other.scale * 2",
    "n = next(iter([s.size(-1)]))",
    "act = torch.nn.ReLU(inplace=True)\nact(k.detach())",
    "self.eval()\nself.train(flag)",
    "nn.Module.train(self.drop, flag)",
    "if store.counted > 1:\n    x = s",
)
AFTER_WEIGHTS = (
    "x = w",
    "x = w.mean()",
    "store.weights = w",
    "self.last = w",
    "f = lambda: w.sum()",
    "seen.append(w)",
    "w = w / w.sum(-1, keepdim=True)",
    "w[..., 0] = 0.0",
    "w.mul_(2)",
    "if flag:\n    w = w * 2",
    "z = w.shape",
    "w = torch.where(w > 0.1, w, 0.0)",
    "y = {name: w for name in 'a'}",
    "w = w.to(v.dtype)",
    "v = v + w.mean()",
    "match flag:\n    case True:\n        w = w * 0.5\n    case _:\n        pass",
    "w = F.dropout(w, 0.5, flag)",
)
AFTERWARDS = (
    "del s",
    "del w",
    "del s, w",
    "out.mul_(2)",
    "out[0] = 0.0",
    "out += q",
    "out = out + q",
    "out.view(-1)[0] = 1.0",
    "out = out.transpose(1, 2)",
    "out = out.transpose(1, 2).contiguous().view(2, 5, -1)",
    "out = out.transpose(1, 2).reshape(2, 5, -1)",
    "x = s",
    "x = w",
    "x = sorted(locals())",
    "x = 's' in locals()",
    "x = eval('w')",
    "f = lambda: w",
    "q.mul_(2)",
    "v.mul_(2)",
    "mask.logical_not_()",
    "s = out",
    "w = out\nout = w",
    "try:\n    x = w\nexcept NameError:\n    x = None",
    "y = [w for w in range(2)]",
    "def g():\n    return w\nx = g()",
    "out = self.drop(out)",
    "x = torch.rand(2)",
    "w = None",
    "if flag:\n    x = w",
    "out.relu_()",
    "F.relu(out, inplace=True)",
    "out.data.mul_(2)",
    "x = out.detach()\nx += 1",
    "x = (out * 2).view(30, -1)",
    "x = self.drop(out).view(out.size(0), -1)",
    "x = out.stride()",
    "x = out.view_as(out)",
    "if store.counted > 1:\n    x = w",
)
FORMS = ("method", "method", "nested", "closure", "decorated", "tried", "viewed", "doubled")
SHADOWS = ("", "", "F = 3", "halved = kept", "soften = torch.sigmoid", "max = min", "scale = 2.0")
RETURNED = ("out", "x", "q", "k", "v", "s", "w", "y")
SHAPES = {"q": (2, 3, 5, 4), "k": (2, 3, 7, 4), "v": (2, 3, 7, 6), "bias": (5, 7)}
DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Program:
    """A source, and how it is run."""

    source: str
    dtype: torch.dtype
    other: torch.dtype
    """Of the mask that is added."""
    flag: bool
    training: bool
    needs_grad: bool
    aliased: bool
    """Keys and values are one tensor."""


@st.composite
def programs(draw: st.DrawFn) -> Program:
    def some(pool: Sequence[str], most: int) -> list[str]:
        return draw(st.lists(st.sampled_from(pool), max_size=draw(st.integers(0, most))))

    lines = some(ANYWHERE, 1)
    lines.append(f"s = {draw(st.sampled_from(PRODUCTS))}")
    lines += draw(st.permutations(some(STEPS, 2) + some(AFTER_SCORES, 1) + some(ANYWHERE, 1)))
    lines.append(f"w = {draw(st.sampled_from(SOFTMAXES))}")
    lines += draw(st.permutations(some(DROPOUTS, 1) + some(AFTER_WEIGHTS, 1) + some(ANYWHERE, 1)))
    lines.append(f"out = {draw(st.sampled_from(VALUES))}")
    lines += some(AFTERWARDS, 2) + some(ANYWHERE, 1)
    told = draw(st.lists(st.sampled_from(RETURNED[1:]), max_size=draw(st.integers(0, 1))))
    tail = ["found = {'out': out}"]
    tail += [f"found['{name}'] = {name}" for name in told]
    body = "\n".join([*lines, *tail, "return found"])
    return Program(
        _module(body, draw(st.sampled_from(FORMS)), draw(st.sampled_from(SHADOWS))),
        draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES)),
        draw(st.booleans()), draw(st.booleans()), draw(st.booleans()),
        draw(st.sampled_from((False, False, False, True))),
    )  # fmt: skip


def _module(body: str, form: str, shadow: str) -> str:
    head = "def attend(self, q, k, v, mask, bias, flag):"
    before = {"decorated": "@torch.no_grad()\n"}.get(form, "")
    if form == "tried":
        body = f"try:\n{_indented(body)}\nexcept RuntimeError:\n    return {{'caught': q}}"
    function = f"{before}{head}\n{_indented(body)}"
    if form in ("nested", "closure"):
        names = "q, k, v, mask, bias, flag" if form == "nested" else ""
        lines = [
            *([shadow] if shadow else []),
            f"def inner({names}):",
            _indented(body),
            f"return inner({names})",
        ]
        function = "\n".join([head, *map(_indented, lines)])
    if form in ("viewed", "doubled"):
        use = {"viewed": "['out'].view(30, -1)", "doubled": "['out'].mul_(2)"}[form]
        caller = f"return {{'out': self.called(q, k, v, mask, bias, flag){use}}}"
        function = f"{function.replace('attend', 'called')}\n\n{head}\n{_indented(caller)}"
    init = (
        "super().__init__()\nself.scale = 0.5\nself.calls = 0\nself.drop = nn.Dropout(0.0)\n"
        "self.softmax = nn.Softmax(dim=-1)\nself.register_buffer('causal', torch.tril(torch.ones(9, 9)))"
    )
    made = f"    def __init__(self):\n{_indented(_indented(init))}\n\n{_indented(function)}\n"
    return f"{HEAD}\n\nclass Attention(nn.Module):\n{made}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))


def run(source: str, program: Program) -> dict[str, Any]:
    """Everything that the program lets others see: results, gradients, the inputs afterwards, its notes."""
    generator = torch.Generator().manual_seed(0)
    leaves = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(
            program.other if name == "bias" else program.dtype
        )
        for name, shape in SHAPES.items()
    }
    mask = torch.rand(5, 7, generator=generator) < 0.4
    mask[:, 0] = False
    if program.aliased:
        leaves["v"] = leaves["k"]
    for leaf in leaves.values():
        leaf.requires_grad_(program.needs_grad)
    given = {name: leaf.clone() for name, leaf in leaves.items()}  # in-place changes of leaves are refused
    if program.aliased:
        given["v"] = given["k"]
    names: dict[str, Any] = {}
    torch.manual_seed(1)
    try:
        exec(compile(source, "<generated>", "exec"), names)
        module = names["Attention"]().train(program.training)
        with torch.enable_grad():  # which also brings back the mode that a program leaves
            found = module.attend(given["q"], given["k"], given["v"], mask, given["bias"], program.flag)
    except Exception as error:  # noqa: BLE001 - what it raises is what it does
        return {"raised": type(error).__name__}
    told: dict[str, Any] = {
        "state": torch.rand(3),
        "mask": mask,
        "notes": len(names["seen"]),
        "total": names["total"],
    }
    told |= {f"given {name}": tensor.detach().clone() for name, tensor in given.items()}
    told |= {f"module {name}": value for name, value in vars(module).items() if not name.startswith("_")}
    told |= {f"store {name}": value for name, value in vars(names["store"]).items()}
    told |= {f"noted {index}": value for index, value in enumerate(names["seen"])}
    told |= {f"found {name}": value for name, value in found.items()}
    out = found.get("out")
    if isinstance(out, Tensor) and out.requires_grad:
        cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
        unique = {id(leaf): leaf for leaf in leaves.values()}
        try:
            gradients = torch.autograd.grad(out, list(unique.values()), cotangent, allow_unused=True)
        except RuntimeError as error:
            return {"raised": f"backward: {type(error).__name__}"}
        told |= {f"gradient {index}": each for index, each in enumerate(gradients)}
    return told


def difference(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> str:
    """What differs; empty if nothing does."""
    if "raised" in new:
        return f"raises {new['raised']}"
    if old.keys() != new.keys():
        return f"{sorted(old.keys() ^ new.keys())}"
    return next((f"{name}: {how}" for name in old if (how := _differs(old[name], new[name], tolerance))), "")


def _differs(old: Any, new: Any, tolerance: float) -> str:
    if isinstance(old, (list, tuple, dict)) and type(old) is type(new):
        old, new = (list(each.values()) if isinstance(each, dict) else list(each) for each in (old, new))
        if len(old) != len(new):
            return f"{len(old)} and {len(new)}"
        return next(
            (how for one, two in zip(old, new, strict=True) if (how := _differs(one, two, tolerance))), ""
        )
    if not (isinstance(old, Tensor) and isinstance(new, Tensor)):
        callables = callable(old) and callable(new)
        return "" if callables or (type(old) is type(new) and old == new) else f"{old!r} and {new!r}"[:80]
    if old.shape != new.shape or old.dtype != new.dtype:
        return f"{old.dtype} {tuple(old.shape)} and {new.dtype} {tuple(new.shape)}"
    old, new = old.detach().double(), new.detach().double()
    finite = old.isfinite()
    if not finite.any():
        return ""
    off = (new[finite] - old[finite]).abs().max().item()
    return "" if off <= tolerance * (1 + old[finite].abs().max().item()) else f"off by {off:.2g}"


TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.2}


def check(program: Program, verifier: Verifier) -> str:
    """What is wrong with what is written; empty if nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sites = find_sites(program.source)
        rewritten = [site for site in sites if site.verdict == "rewritten"]
        if not rewritten:
            return ""
        after = apply(program.source, sites)
        tolerance = max(TOLERANCE[program.dtype], TOLERANCE[program.other])
        if ".half()" in program.source or ".float()" in program.source or "float32" in program.source:
            tolerance = max(tolerance, 1e-3)
        old = run(program.source, program)
        if "raised" in old:  # PyTorch's CPU kernel may write beyond tensors whose sizes do not fit
            return ""
        wrong = difference(old, run(after, program), tolerance)
        verifier.spent.clear()  # every program is a file of its own
        if not wrong or not all(verifier.verify(site).passed for site in rewritten):
            return ""
    return f"{wrong}\n{program}\n{program.source}\n{after}"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(program=programs())
def test_a_rewritten_program_is_the_same_program(program: Program, verifier: Verifier) -> None:
    assert not check(program, verifier)


@pytest.mark.long
@settings(max_examples=20_000, deadline=None)
@given(program=programs())
def test_many_rewritten_programs_are_the_same_programs(program: Program, verifier: Verifier) -> None:
    assert not check(program, verifier)
