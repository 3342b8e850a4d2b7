"""The search takes a bounded number of steps: what doubles is followed once, or said to be too much."""

import sys

import pytest

from flashmore.upgrade.budget import FILE_STEPS, FUNCTION_STEPS, Budget, Exceeded, limited, step
from flashmore.upgrade.find import find_sites

HEAD = "import torch\nimport torch.nn.functional as F\n\n\ndef f(q, k, v, c):\n"
TAIL = "    return w @ v\n"
SCORES = "    s = q @ k.mT\n"
SOFTMAX = "    w = s.softmax(-1)\n"
ROWS = {
    "nested max": (
        "    n = q.size(-1)\n", "    n = max(n, n, n)\n", "    s = q @ k.mT / n\n" + SOFTMAX
    ),
    "squares": ("    n = q.size(-1)\n", "    n = n * n\n", "    s = (q @ k.mT).view(n, n)\n" + SOFTMAX),
    "conditional biases": (SCORES, "    if c[{0}] is not None:\n        s = s + c[{0}]\n", SOFTMAX),
    "conditional masks": (
        SCORES, "    if c[{0}] is not None:\n        s = s.masked_fill(c[{0}], float('-inf'))\n", SOFTMAX
    ),
    "conditional scales": (SCORES, "    s = s * 2 if c[{0}] else s * 3\n", SOFTMAX),
    "conditional views": (SCORES, "    if c[{0}]:\n        s = s.view(s.shape)\n", SOFTMAX),
    "conditional transpositions": (SCORES + SOFTMAX, "    if c[{0}]:\n        w = w.mT.mT\n", ""),
    "conditional dropouts": (SCORES + SOFTMAX, "    if c[{0}]:\n        w = F.dropout(w, 0.1)\n", ""),
    "masks of masks": (
        "    m = c\n", "    m = (m & m) | ~m\n",
        "    s = (q @ k.mT).masked_fill(m, float('-inf'))\n" + SOFTMAX,
    ),
    "masks in views": (
        "    m = torch.ones(c, c).tril()\n", "    m = m.view(m.size(0), m.size(1))\n",
        "    s = (q @ k.mT).masked_fill(m == 0, float('-inf'))\n" + SOFTMAX,
    ),
    "sums": (SCORES, "    s = s + s\n", SOFTMAX),
}  # fmt: skip
HELPERS = "".join(
    f"def h{level}(x):\n    return {' + '.join([f'h{level + 1}(x)'] * 20)}\n\n\n" for level in range(5)
)
HELPED = "def h5(x):\n    return x\n\n\ndef g(q, k, v):\n    return h0(q @ k.mT).softmax(-1) @ v\n"
TOO_MUCH = HELPERS + HELPED
PLAIN = f"{HEAD}{SCORES}{SOFTMAX}{TAIL}"


def row(name: str, count: int) -> str:
    before, line, after = ROWS[name]
    return HEAD + before + "".join(line.format(number) for number in range(count)) + after + TAIL


def steps_of(source: str, monkeypatch: pytest.MonkeyPatch) -> int:
    budgets: list[Budget] = []

    def made(steps: int) -> Budget:
        budgets.append(Budget(steps))
        return budgets[-1]

    with monkeypatch.context() as patched:
        patched.setattr("flashmore.upgrade.find.Budget", made)
        find_sites(source)
    (budget,) = budgets
    return FILE_STEPS - budget.left


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_lines_is_read_in_a_number_of_steps_that_does_not_double(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (steps_of(row(name, count), monkeypatch) for count in (15, 30))
    assert 0 < many < 16 * few


@pytest.mark.parametrize("name", ROWS)
def test_a_row_without_end_ends(name: str) -> None:
    (site,) = find_sites(row(name, 500))
    assert site.verdict in ("refused", "rewritten")


def test_what_is_too_much_is_said_and_the_other_functions_go_on() -> None:
    sites = find_sites(f"{TOO_MUCH}\n\n{PLAIN}\n\n{PLAIN.replace('def f', 'def h')}")
    assert [(site.symbol, site.verdict) for site in sites] == [
        ("g", "refused"), ("f", "rewritten"), ("h", "rewritten")
    ]  # fmt: skip
    assert sites[0].reason == f"the search budget of {FUNCTION_STEPS:,} steps was exceeded"


def test_a_file_has_a_budget_too() -> None:
    many = "".join(HELPED.replace("def g", f"def g{number}") for number in range(5))
    sites = find_sites(f"{PLAIN}\n\n{HELPERS}{many}")
    reasons = [site.reason for site in sites if site.symbol.startswith("g")]
    exceeded = [FUNCTION_STEPS, *[FILE_STEPS] * 4]  # the second one finds less than its own budget left
    assert reasons == [f"the search budget of {steps:,} steps was exceeded" for steps in exceeded]
    assert next(site for site in sites if site.symbol == "f").verdict == "rewritten"


def test_a_file_of_many_attentions_fits_its_budget() -> None:
    lines = f"{HEAD}{SCORES}    s.masked_fill_(c, -1e9)\n{SOFTMAX}{TAIL}"
    layer = lines.partition("def ")[2].replace("f(q", "forward(self, q").replace("\n", "\n    ")
    layers = (f"\n\nclass A{number}(torch.nn.Module):\n    def {layer}" for number in range(50))
    sites = find_sites(HEAD.partition("\n\n")[0] + "\n" + "".join(layers))
    assert [site.verdict for site in sites] == ["rewritten"] * 50


def test_the_same_source_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({steps_of(row(name, 9), monkeypatch) for name in ["sums"] * 3}) == 1


def test_what_is_nested_too_deeply_is_said() -> None:
    deep = f"{HEAD}{SCORES}    x = {'-' * 500}c\n{SOFTMAX}{TAIL}"
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # libraries raise it
    try:
        (site,) = find_sites(deep.replace("def f", "def deep"))
    finally:
        sys.setrecursionlimit(limit)
    assert site.verdict == "refused"
    assert "nested too deeply" in site.reason


def test_steps_are_counted_inside_of_a_budget_alone() -> None:
    step(10**9)
    budget = Budget(10)
    with limited(budget, 7):
        step(7)
        with pytest.raises(Exceeded, match="of 7 steps"):
            step()
    with pytest.raises(Exceeded, match="of 10 steps"), limited(budget, 7):
        step(4)
    step()


def test_the_checks_of_many_rewritings_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmore.upgrade.find.Budget", lambda steps: Budget(steps // 10))
    functions = "\n\n".join(f"def f{n}(q, k, v):\n{SCORES}{SOFTMAX}{TAIL}" for n in range(40))
    sites = find_sites("import torch\n\n\n" + functions)
    assert len(sites) == 40
    assert [site.verdict for site in sites[:10]] == ["rewritten"] * 10
    assert "search budget" in sites[-1].reason


def test_classes_that_are_inherited_in_many_ways_are_looked_at_once() -> None:
    pairs = "".join(
        f"class A{n}(A{n - 1}, B{n - 1}):\n    pass\nclass B{n}(A{n - 1}, B{n - 1}):\n    pass\n"
        for n in range(1, 60)
    )
    heads = (
        "import torch\nfrom torch import nn\nclass A0(nn.Module):\n    pass\nclass B0(nn.Module):\n    pass\n"
    )
    method = "".join(
        f"    {line}\n" for line in f"def forward(self, q, k, v):\n{SCORES}{SOFTMAX}{TAIL}".splitlines()
    )
    body = method.replace("q @ k.mT", "q @ k.mT * self.scale")
    first = heads.replace("class A0(nn.Module):\n    pass\n", f"class A0(nn.Module):\n{body}")
    assert [site.symbol for site in find_sites(first + pairs)] == ["A0.forward"]
    last = f"class M(A59, B59):\n{body}"
    assert [site.symbol for site in find_sites(heads + pairs + last)] == ["M.forward"]


def test_a_row_of_aliases_is_followed_once() -> None:
    aliases = "".join(f"a{n + 1} = a{n}\n" for n in range(3_000))
    uses = "".join(f"print(a{n})\n" for n in range(3_000))
    (site,) = find_sites(f"import torch.nn.functional as a0\n{aliases}{uses}\n\n{PLAIN}")
    assert site.verdict == "rewritten"


def test_a_row_of_aliases_that_makes_names_longer_ends() -> None:
    aliases = "".join(f"a{n + 1} = a{n}.nn.functional\n" for n in range(3_000))
    (site,) = find_sites(f"import torch as a0\n{aliases}\n\n{PLAIN}".replace("k.mT", "a3000.f(k)"))
    assert site.verdict in ("refused", "rewritten")


@pytest.mark.parametrize("alias", ["a0 = a0", "a0 = a1\na1 = a0.x"])
def test_aliases_of_each_other_are_nothing(alias: str) -> None:
    assert find_sites(f"{alias}\n{PLAIN.replace('k.mT', 'a0(k)')}")


@pytest.mark.parametrize(
    "tensor",
    [
        "q.view({})", "q.reshape({})", "q.permute({})", "q.expand({})", "q[{}]",
        "einops.rearrange(q, '{} -> {}')",
    ],
)  # fmt: skip
def test_more_axes_than_a_tensor_has_are_not_compared_with_each_other(tensor: str) -> None:
    axes = ", ".join(["1"] * 10_000)
    scores = SCORES.replace("q @", f"{tensor.format(axes, axes)} @")
    found = find_sites(f"{HEAD.replace('import torch', 'import einops, torch', 1)}{scores}{SOFTMAX}{TAIL}")
    assert {site.verdict for site in found} <= {"refused", "rewritten"}
