"""Formulas: any spelling is recognised and computes the same; wrong replacements fail the test."""

import ast
import math
import re
from collections.abc import Callable
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from case_files import cases
from flashmore.upgrade.edits import apply
from flashmore.upgrade.find import find_sites
from flashmore.upgrade.formulas.evaluate import Evaluation
from flashmore.upgrade.rules import CODES, attention
from flashmore.upgrade.site import Site
from flashmore.upgrade.source.flow import Flow
from flashmore.upgrade.source.module import Module
from flashmore.upgrade.verify.verifier import Verifier

HEAD = "import math\n\nimport numpy as np\nimport torch\nimport torch.nn.functional as F\n\n\n"


@st.composite
def product_of(draw: st.DrawFn, factors: list[str]) -> str:
    """Factors in any order, in parentheses as they fall."""
    text, *rest = draw(st.permutations(factors))
    for each in rest:
        text = draw(st.sampled_from([f"{text} * {each}", f"({text}) * {each}", f"torch.mul({text}, {each})"]))
    return text


@st.composite
def gelus(draw: st.DrawFn) -> str:
    """GELU in either form, as the body of a function of x."""
    half = draw(st.sampled_from(["0.5", "(1 / 2)", "0.5"]))
    if draw(st.booleans()):
        cube = draw(
            st.sampled_from(
                ["x**3", "x * x * x", "torch.pow(x, 3)", "x.pow(3.0)", "x**2 * x", "x * x.square()"]
            )
        )
        root = draw(
            st.sampled_from(
                ["math.sqrt(2 / math.pi)", "0.7978845608", "np.sqrt(2 / np.pi)", "(2 / math.pi) ** 0.5",
                 "torch.sqrt(torch.tensor(2.0 / math.pi))", "math.sqrt(2.0) / math.sqrt(math.pi)"]
            )
        )  # fmt: skip
        inner = draw(product_of([f"({root})", f"(x + 0.044715 * ({cube}))"]))
        called = draw(
            st.sampled_from(["torch.tanh({})", "({}).tanh()", "F.tanh({})", "torch.tanh(input={})"])
        )
    else:
        inner = draw(
            st.sampled_from(["x / math.sqrt(2)", "x * 0.7071067811865475", "x / 2**0.5", "x / np.sqrt(2.0)"])
        )
        called = draw(st.sampled_from(["torch.erf({})", "({}).erf()", "torch.special.erf({})"]))
    lines = []
    if draw(st.booleans()):
        lines.append(f"u = {inner}")
        inner = "u"
    one = called.format(inner)
    if draw(st.booleans()):
        lines.append(f"t = {one}")
        one = "t"
    last = draw(st.sampled_from([f"(1 + {one})", f"({one} + 1.0)", f"({one}).add(1)"]))
    whole = draw(product_of(["x", half, last]))
    return "".join(f"    {line}\n" for line in [*lines, f"return {whole}"])


@settings(max_examples=60)
@given(body=gelus())
def test_every_spelling_of_gelu_is_replaced_by_the_same_function(body: str) -> None:
    source = f"{HEAD}def f(x):\n{body}"
    (site,) = find_sites(source)
    assert site.verdict == "rewritten", site.reason
    after = apply(source, [site])
    assert after.count("\n") == HEAD.count("\n") + 2
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    spaces: list[dict[str, Callable[..., torch.Tensor]]] = [{}, {}]
    for text, space in zip((source, after), spaces, strict=True):
        exec(text, space)
    old, new = (space["f"](x) for space in spaces)
    assert (old - new).abs().max() < 1e-7


EXPRESSIONS = (
    "x + 2", "3 - x", "x / y", "-x", "x ** 3", "x.pow(2)", "torch.pow(x, 3)", "x.square()", "x.abs()",
    "abs(x)", "torch.tanh(x)", "x.sigmoid()", "torch.erf(x)", "torch.erfc(x)", "y.sqrt()", "y.rsqrt()",
    "torch.log(y)", "x.exp()", "y.reciprocal()", "torch.rsub(x, 2)", "x.mean()",
    "x.mean(-1, keepdim=True)", "torch.mean(x, 0)",
    "x.mean(dim=(0, 2), keepdim=True)", "x.sum(1, keepdims=True)", "x.var(-1)", "x.var(-1, False)",
    "x.var(1, unbiased=False, keepdim=True)", "torch.var(x, dim=-1, correction=0)", "x.std()",
    "x.std(-1, keepdim=True)", "torch.var_mean(x, dim=-1, keepdim=True)[0]", "torch.std_mean(x, -1)[1]",
    "x.amax(-1, keepdim=True)", "x.norm(2, dim=-1, keepdim=True)", "x.norm(dim=1)",
    "torch.logsumexp(x, -1)", "x.logsumexp(1, keepdim=True)", "F.softmax(x, dim=-1)", "x.log_softmax(1)",
    "x.gather(-1, t.unsqueeze(-1))", "x[:, None]", "x.unsqueeze(-1).squeeze(-1)", "x[torch.arange(2), 1]",
    "torch.sqrt(torch.tensor(2 / math.pi)) * x", "F.nll_loss(x, t[:, :4])",
    "F.nll_loss(x, t[:, :4], reduction='sum')",
)  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_has_the_value_that_torch_gives_it(expression: str) -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = {"x": x, "y": x.square() + 0.5, "t": torch.tensor([[0, 2, 1], [2, 1, 0]])}
    if "nll_loss" in expression:
        given["t"] = torch.tensor([[0, 2, 1, 1, 0], [2, 1, 0, 0, 1]])
    wanted = eval(expression, {"torch": torch, "F": F, "math": math}, given)
    module = Module(ast.parse(f"{HEAD}def f(x, y, t):\n    return {expression}\n"))
    flow = Flow(module, None, module.functions["f"]).run()
    values = {flow.before[flow.function.body[0]][name]: tensor.numpy() for name, tensor in given.items()}
    if "t[:, :4]" in expression:  # a piece of a tensor is an input
        piece = next(value for value in flow.values if value.op == "index")
        values[piece] = given["t"][:, :4].numpy()
    returned = next(value for value in flow.values if value.op == "return")
    got = torch.as_tensor(Evaluation(flow, values, len(x)).of(returned.args[0]))
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@st.composite
def norms(draw: st.DrawFn) -> tuple[str, str]:
    """A layer or RMS norm as the body of a function of x, and the call that replaces it."""
    layer = draw(st.booleans())
    lines = []

    def named(name: str, text: str) -> str:
        if draw(st.booleans()):
            lines.append(f"{name} = {text}")
            return name
        return f"({text})"

    centred = "x"
    keep = draw(st.sampled_from(["keepdim=True", "keepdims=True"]))
    if layer:
        mean = named("mean", draw(st.sampled_from([f"x.mean(-1, {keep})", f"torch.mean(x, dim=-1, {keep})"])))
        centred = named("centred", f"x - {mean}")
    squares = draw(st.sampled_from([f"{centred} ** 2", f"{centred}.pow(2)", f"torch.square({centred})",
                                    f"{centred} * {centred}"]))  # fmt: skip
    ways = [f"({squares}).mean(-1, {keep})", f"torch.mean({squares}, -1, True)"]
    ways += [
        "x.var(-1, unbiased=False, keepdim=True)",
        "torch.var(x, -1, correction=0, keepdim=True)",
    ] * layer
    variance = named("variance", draw(st.sampled_from(ways)))
    eps = draw(st.sampled_from(["1e-5", "eps"]))
    ways = [
        f"{centred} / torch.sqrt({variance} + {eps})", f"{centred} * torch.rsqrt({variance} + {eps})",
        f"({variance} + {eps}) ** -0.5 * {centred}", f"{centred} / ({eps} + {variance}).sqrt()",
        f"{centred}.div(({variance} + {eps}).pow(0.5))",
    ]  # fmt: skip
    call = f"F.{'layer' if layer else 'rms'}_norm(x, x.shape[-1:], eps={eps})"
    lines.append(f"return {draw(st.sampled_from(ways))}")
    return "".join(f"    {line}\n" for line in lines), call


@settings(max_examples=80)
@given(norm=norms())
def test_every_spelling_of_a_norm_is_replaced_by_its_call(norm: tuple[str, str]) -> None:
    body, call = norm
    source = f"{HEAD}def f(x, eps):\n{body}"
    (site,) = find_sites(source)
    assert site.verdict == "rewritten", site.reason
    assert apply(source, [site]) == f"{HEAD}def f(x, eps):\n    return {call}\n"


WRONG = (
    (r'approximate="tanh"', 'approximate="none"'), (r"gelu\((\w+)\)", r'gelu(\1, approximate="tanh")'),
    (r"gelu\((\w+)", r"gelu(1.02 * \1"), (r"(layer|rms)_norm\((\w+)", r"\1_norm(\2.abs()"),
    (r"(layer|rms)_norm\((\w+)", r"\1_norm(\2.detach()"), (r"eps=([a-z]\w*)", r"eps=2 * \1"),
    (r"dim=-?1", "dim=0"), (r"log_softmax\((\w+)", r"log_softmax(\1.detach()"), (r"log_softmax", "softmax"),
    (r'reduction="sum"', 'reduction="mean"'), (r"entropy\((\w+), (\w+)", r"entropy(\1, 1 - \2"),
    (r"entropy\((\w+)", r"entropy(\1 * 1.1"), (r"fused=True", "fused=True, maximize=True"),
    (r"\(parameters", "(parameters[:0]"),
)  # fmt: skip
"""What makes a replacement wrong."""


def rewritten() -> list[tuple[str, Site]]:
    """Every place of the case files that a rule other than attention rewrites."""
    others = CODES - {attention.RULE.code}
    found = (
        (case.name, site)
        for case in cases()
        if case.after
        for site in find_sites(case.before, case.name, others)
    )
    return [(name, site) for name, site in found if site.verdict == "rewritten"]


VECTORS = {
    "torch.ones((n,))": True,
    "torch.full([n], 1.0)": True,
    "torch.rand(n)": True,
    "torch.Tensor([n])": False,
    "torch.full((1,), 1.0)": False,
    "torch.ones((1, n))": False,
}


@pytest.mark.parametrize("made", VECTORS)
def test_a_norm_takes_a_weight_of_one_dimension_however_it_is_made(made: str) -> None:
    source = f"""import torch
from torch import nn


class Norm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter({made})

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
"""
    assert [site.verdict for site in find_sites(source)] == ["rewritten"] * VECTORS[made]


@pytest.mark.parametrize(("name", "site"), rewritten(), ids=lambda one: one if isinstance(one, str) else "")
def test_right_replacements_pass_and_wrong_ones_fail(name: str, site: Site, verifier: Verifier) -> None:
    assert site.fragment is not None
    right = verifier.verify(site)
    assert right.passed, right.why_not
    assert not any("MATH kernel" in case.name for case in right.cases)
    tried = 0
    for number, (old, new) in enumerate(WRONG):
        made = re.sub(old, new, site.fragment.new.replace("'", '"'), flags=re.MULTILINE)
        if made == site.fragment.new.replace("'", '"'):
            continue
        wrong = replace(site, path=f"{name} {number}", fragment=replace(site.fragment, new=made))
        assert not verifier.verify(wrong).passed, made
        tried += 1
    assert tried >= 2


@pytest.mark.parametrize("line", ["x.log(x) - 1", "torch.add(x, x, x).log()", "torch.exp(x, x).sum().log()"])
def test_a_result_that_numpy_would_store_changes_no_sample_for_the_next_file(line: str) -> None:
    find_sites(f"import torch\n\ndef stored(x):\n    return {line}\n")
    after = "import torch\n\ndef f(x):\n    return x - torch.logsumexp(x, dim=-1, keepdim=True)\n"
    assert [site.code for site in find_sites(after)] == ["FM007"]
