"""What other files of the project replace: methods, functions, layers and hooks of them."""

from pathlib import Path

import pytest

from flashmore.upgrade.search import search
from flashmore.upgrade.site import Searched
from source_files import site_of

LAYERS = """import torch
from torch import nn


class Dropout(nn.Dropout):
    pass


class Soft(nn.Module):
    def forward(self, scores):
        return torch.softmax(scores, dim=-1)


class Base(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = width**-0.5
        self.dropout = Dropout(0.1)
        self.softmax = Soft()
"""
DERIVED = """import torch
from layers import Base, Dropout


class Attention(Base):
    def forward(self, q, k, v):
        return self.dropout(self.softmax(q @ k.transpose(-2, -1) * self.scale)) @ v
"""


def test_attributes_of_a_base_class_in_another_file_are_known(tmp_path: Path) -> None:
    found, after = site_of(tmp_path, {"model.py": DERIVED, "layers.py": LAYERS})
    assert found.verdict == "rewritten", found.reason
    assert "dropout_p=self.dropout.p if self.dropout.training else 0.0, scale=self.scale" in after
    own = LAYERS.replace("    pass", "    def forward(self, x):\n        return x.square()")
    found, _ = site_of(tmp_path, {"layers.py": own})
    assert found.verdict == "refused"


@pytest.mark.parametrize(
    ("below", "verdict"),
    [
        ("    def forward(self, q, k, v):\n        return q\n", "rewritten"),
        ("    def softmax(self, scores):\n        return scores\n", "refused"),
        ("    def __init__(self):\n        self.dropout = torch.nn.ReLU()\n", "refused"),
        ("    def __init__(self):\n        self.dropout = torch.nn.Dropout(0.5)\n", "rewritten"),
    ],
)
def test_a_subclass_in_another_file_may_change_what_the_lines_mean(
    tmp_path: Path, below: str, verdict: str
) -> None:
    more = f"import torch\nimport model\n\n\nclass Other(model.Attention):\n{below}"
    found, _ = site_of(tmp_path, {"model.py": DERIVED, "layers.py": LAYERS, "lib/more.py": more})
    assert found.verdict == verdict, found.reason


GELU = """import math

import torch

CUBE = 0.044715


class GELU(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.half = 0.5

    def forward(self, x):
        return self.half * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + CUBE * x**3)))
"""


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("import model\n\nmodel.CUBES = 0.4\n", ""),
        (
            "import model\n\nmodel.CUBE = 0.4\n",
            "`CUBE` is set in other.py, line 3, perhaps to another number",
        ),
        (
            "import model\n\ngelu = model.GELU()\ngelu.half = 2.0\n",
            "`half` is set in other.py, line 4, perhaps to another number",
        ),
        ("import torch\n\ntorch.tanh = torch.sin\n", "`torch.tanh` is replaced in other.py, line 3"),
        (
            "from torch import nn\n\nimport model\n\n\nclass Twice(model.GELU):\n"
            "    def __init__(self):\n        self.half = 1.0\n",
            "`self.half` means something else in the subclass `Twice` (other.py, line 8)",
        ),
    ],
)
def test_a_formula_holds_for_what_no_other_file_replaces(tmp_path: Path, other: str, reason: str) -> None:
    found, _ = site_of(tmp_path, {"model.py": GELU, "other.py": other})
    assert (found.verdict, found.reason) == (
        ("refused", reason) if reason else ("rewritten", "GELU, approximated with tanh")
    )


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    "patch", ["import torch\n\ntorch.tanh = torch.sin\n", "import model\n\nmodel.CUBE = 1\n"]
)
def test_a_replacement_in_another_project_does_not_count(tmp_path: Path, patch: str, marked: bool) -> None:
    """Two projects are searched at once; the second also has a module of the name `model`."""
    for name, files in {"one": {"model.py": GELU}, "two": {"model.py": GELU, "other.py": patch}}.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        if marked:
            (tmp_path / name / ".git").mkdir()
    given = [tmp_path] if marked else [tmp_path / "one", tmp_path / "two"]
    found = {
        Path(each.path).parent.name: each for each in search(given) if Path(each.path).name == "model.py"
    }
    verdicts = {
        name: [each.verdict for each in one.sites] for name, one in found.items() if isinstance(one, Searched)
    }
    assert verdicts == {"one": ["rewritten"], "two": ["refused"]}


def test_a_replacement_counts_in_another_project_that_it_imports(tmp_path: Path) -> None:
    patch = "import torch\n\ntorch.tanh = torch.sin\n"
    for name, files in {
        "library": {"formulas.py": GELU},
        "program": {"main.py": f"from library.formulas import GELU\n\n{patch}print(GELU())\n"},
    }.items():
        (tmp_path / name / ".git").mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    found = [each for each in search([tmp_path]) if Path(each.path).name == "formulas.py"]
    assert [each.verdict for one in found if isinstance(one, Searched) for each in one.sites] == ["refused"]


@pytest.mark.parametrize(
    "patch",
    [
        "mock.patch('torch.softmax', print)",
        "mock.patch.object(torch, 'softmax', print)",
        "torch.__dict__['softmax'] = print",
        "torch.Tensor.__matmul__ = print",
        "monkeypatch.setattr(torch, 'softmax', print)",
    ],
)
def test_what_a_test_replaces_in_torch_is_seen(tmp_path: Path, patch: str) -> None:
    other = f"import torch\nfrom unittest import mock\n\n\ndef test_it(monkeypatch):\n    {patch}\n"
    model = "import torch\n\n\ndef attend(q, k, v):\n    return torch.softmax(q @ k.mT, dim=-1) @ v\n"
    found, _ = site_of(tmp_path, {"model.py": model, "test.py": other})
    assert found.reason.endswith("is replaced in test.py, line 6")


@pytest.mark.parametrize("own", [True, False])
def test_what_replaces_the_fused_function_is_not_rewritten_to_call_it(tmp_path: Path, own: bool) -> None:
    hook = """import torch


def by_hand(query, key, value):
    return torch.softmax(query @ key.transpose(-2, -1) / 8, dim=-1) @ value


"""
    patch = "torch.nn.functional.scaled_dot_product_attention = {}by_hand\n"
    files = {"model.py": hook + (patch.format("") if own else "")}
    files["other.py"] = "import torch\nimport model\n\n" + ("" if own else patch.format("model."))
    found, _ = site_of(tmp_path, files)
    place = "model.py, line 8" if own else "other.py, line 4"
    assert found.reason == f"`torch.nn.functional.scaled_dot_product_attention` is replaced in {place}"


def test_a_subclass_is_found_through_the_files_between(tmp_path: Path) -> None:
    between = (
        "import model\nfrom model import Attention as Base\n\nclass Middle(model.Attention):\n    pass\n"
    )
    below = "import {0}\n\n\nclass Other({0}.{1}):\n    def softmax(self, scores):\n        return scores\n"
    for name in ("Base", "Middle"):
        files = {"model.py": DERIVED, "layers.py": LAYERS, "between.py": between}
        found, _ = site_of(tmp_path, {**files, "below.py": below.format("between", name)})
        assert "`Other` (below.py, line 5)" in found.reason


SCRIPT = """import torch

q, k, v = (torch.randn(2, 4, 8, 16) for _ in range(3))
weights = torch.softmax(q @ k.transpose(-2, -1), dim=-1)
out = weights @ v
"""


@pytest.mark.parametrize(
    ("name", "other", "verdict"),
    [
        ("model.py", "from model import weights", "refused"),
        ("model.py", "import model\n\nprint(model.weights)", "refused"),
        ("lib/__init__.py", "import lib\n\nprint(lib.weights)", "refused"),
        ("model.py", "weights = 3  # of another kind", "rewritten"),
        ("model.py", "import model\n\nprint(model.q)", "rewritten"),
    ],
)
def test_lines_of_a_script_stay_where_another_file_reads_their_names(
    name: str, other: str, verdict: str, tmp_path: Path
) -> None:
    one, _ = site_of(tmp_path, {name: SCRIPT, "other.py": other}, name)
    assert one.verdict == verdict
    assert verdict == "rewritten" or one.reason == "`weights` may be read by another file"


def test_a_helper_that_another_file_overrides_stays(tmp_path: Path) -> None:
    model = (
        "import torch\n\n\nclass Attention(torch.nn.Module):\n"
        "    def weighted(self, scores, v):\n        return scores.softmax(dim=-1) @ v\n\n"
        "    def forward(self, q, k, v):\n        return self.weighted(q @ k.transpose(-2, -1), v)\n"
    )
    below = "from model import Attention\n\n\nclass Other(Attention):\n{body}"
    body = "    def weighted(self, scores, v):\n        return scores @ v\n"
    one, _ = site_of(tmp_path, {"model.py": model, "other.py": below.format(body=body)})
    assert one.verdict == "refused"
    assert "means something else in the subclass `Other`" in one.reason
    one, _ = site_of(tmp_path, {"model.py": model, "other.py": below.format(body="    pass\n")})
    assert one.verdict == "rewritten"


def test_lines_of_a_script_that_are_differentiated_twice_stay(tmp_path: Path) -> None:
    source = SCRIPT + "\n(g,) = torch.autograd.grad(out.sum(), q, create_graph={again})\n"
    one, _ = site_of(tmp_path, {"model.py": source.format(again=True)})
    assert one.verdict == "refused"
    assert "create_graph" in one.reason
    one, _ = site_of(tmp_path, {"model.py": source.format(again=False)})
    assert one.verdict == "rewritten"
