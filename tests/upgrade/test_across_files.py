"""Definitions in other files of the project: what is followed, and what is not."""

from pathlib import Path

import pytest

from flashmore.upgrade.edits import apply
from flashmore.upgrade.search import search
from flashmore.upgrade.site import Searched, Site

OPS = """import torch.nn.functional as F

DIM = -1


def _stable(scores, dim):
    return F.softmax(scores - scores.amax(dim=dim, keepdim=True), dim=dim)


def softmax(scores, dim=DIM):
    return _stable(scores.float(), dim).type_as(scores)
"""
MODEL = """import torch
import torch.nn.functional as F
{imports}


def attend(q, k, v, rel):
    weights = {weights}
    return weights @ v
"""


def site(folder: Path, files: dict[str, str], searched: str = "model.py") -> tuple[Site, str]:
    """The one place of a file, and the file as it would be."""
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    (folder / "pyproject.toml").touch()
    (found,) = search([folder / searched])
    assert isinstance(found, Searched)
    (one,) = found.sites
    return one, apply(found.source, [one])


def model(imports: str, weights: str = "softmax(q @ k.transpose(-2, -1))") -> str:
    return MODEL.format(imports=imports, weights=weights)


FOLLOWED = {
    "from the file beside": (model("from ops import softmax"), {"ops.py": OPS}),
    "under another name": (
        model("from ops import softmax as soft", "soft(q @ k.transpose(-2, -1))"),
        {"ops.py": OPS},
    ),
    "from a module that is imported": (
        model("import ops", "ops.softmax(q @ k.transpose(-2, -1), -1)"),
        {"ops.py": OPS},
    ),
    "from a package that passes it on": (
        model("from lib import softmax"),
        {
            "lib/__init__.py": "from .inner import *\n",
            "lib/inner.py": "from .ops import softmax\n",
            "lib/ops.py": OPS,
        },
    ),
    "a package passes on a function with its module's name": (
        model("from lib import softmax"),
        {"lib/__init__.py": "from .softmax import softmax\n", "lib/softmax.py": OPS},
    ),
    "by a star": (model("from ops import *"), {"ops.py": OPS}),
    "by a star after a library's": (
        model("from torch.nn.functional import *\nfrom ops import *"),
        {"ops.py": OPS},
    ),
    "through modules that import each other": (
        model("from a import softmax"),
        {"a.py": "import b\nfrom b import softmax\n", "b.py": "import a\n" + OPS},
    ),
    "a name that a type checker alone imports elsewhere": (
        model("from ops import softmax"),
        {
            "ops.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from model import attend\n"
            + OPS
        },
    ),
    "what another file passes on of torch": (
        model("from common import softmax", "softmax(q @ k.transpose(-2, -1), dim=-1)"),
        {"common.py": "from torch.nn.functional import softmax\n"},
    ),
    "a partial": (
        model("from common import softmax"),
        {"common.py": "import functools, torch\nsoftmax = functools.partial(torch.softmax, dim=-1)\n"},
    ),
    "a constant": (
        model("from common import SCALE", "torch.softmax(q @ k.transpose(-2, -1) * SCALE, dim=-1)"),
        {"common.py": "SCALE = 0.125\n"},
    ),
    "a file that has the name of one of Python's": (
        model("from .statistics import softmax"),
        {"statistics.py": OPS},
    ),
    "a helper that adds": (
        model("from ops import add", "add(q @ k.transpose(-2, -1), rel).softmax(dim=-1)"),
        {"ops.py": "def add(scores, bias):\n    return scores + bias\n"},
    ),
}
LEFT_ALONE = {
    "it is not in the project": (model("from other_library import softmax"), {}),
    "one of two imports": (
        model("try:\n    from fast import softmax\nexcept ImportError:\n    from ops import softmax"),
        {"ops.py": OPS},
    ),
    "it is defined twice": (
        model("from ops import softmax"),
        {"ops.py": OPS + "\n\ndef softmax(x):\n    return x\n"},
    ),
    "two stars may bring it": (
        model("from ops import *\nfrom more import *"),
        {"ops.py": OPS, "more.py": OPS},
    ),
    "a star of a library after it": (
        model("from ops import *\nfrom torch.nn.functional import *"),
        {"ops.py": OPS},
    ),
    "a star that does not bring it": (model("from ops import *"), {"ops.py": "__all__ = ['DIM']\n" + OPS}),
    "its decorator replaces it": (
        model("from ops import softmax"),
        {"ops.py": OPS.replace("def softmax", "@other\ndef softmax")},
    ),
    "it does not compute a softmax": (
        model("from ops import softmax"),
        {"ops.py": OPS.replace("scores - scores", "scores * scores")},
    ),
    "it imports itself": (model("from ops import softmax"), {"ops.py": "from ops import softmax\n"}),
    "imports go round in a circle": (
        model("from a import softmax"),
        {"a.py": "from b import softmax\n", "b.py": "from a import softmax\n"},
    ),
    "Python's own module has the name": (model("from statistics import softmax"), {"statistics.py": OPS}),
    "it does something else, too": (
        model("from ops import softmax"),
        {"ops.py": OPS.replace("    return _stable", "    COUNTS.tick()\n    return _stable")},
    ),
    "its constant has the name of another one here": (
        model("from ops import add\nLOW = -1e9", "add(q @ k.transpose(-2, -1), rel).softmax(dim=-1)"),
        {"ops.py": "LOW = [3.0]\n\ndef add(scores, rel):\n    return scores.masked_fill(rel, LOW)\n"},
    ),
    "it is not a file": (model("from ops import softmax"), {"ops.py/x.txt": ""}),
    "it cannot be parsed": (model("from ops import softmax"), {"ops.py": OPS + "def ("}),
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_a_name_is_followed_to_its_definition(tmp_path: Path, case: str) -> None:
    source, files = FOLLOWED[case]
    if "from ." in source:
        files = {f"pkg/{name}": text for name, text in files.items()} | {"pkg/__init__.py": ""}
        found, after = site(tmp_path, files | {"pkg/model.py": source}, "pkg/model.py")
    else:
        found, after = site(tmp_path, files | {"model.py": source})
    assert found.verdict == "rewritten", found.reason
    assert "F.scaled_dot_product_attention(q, k, v" in after
    assert found.fragment is not None


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_a_name_of_which_the_definition_is_unclear_is_left_alone(tmp_path: Path, case: str) -> None:
    source, files = LEFT_ALONE[case]
    found, after = site(tmp_path, files | {"model.py": source})
    assert found.verdict == "refused"
    assert after == source


def test_a_test_runs_the_code_of_the_helper(tmp_path: Path) -> None:
    found, _ = site(tmp_path, {"model.py": model("from ops import softmax"), "ops.py": OPS})
    assert found.fragment is not None
    assert found.fragment.old == (
        "def old(q, k, v):\n"
        "    def _stable(scores, dim):\n"
        "        return F.softmax(scores - scores.amax(dim=dim, keepdim=True), dim=dim)\n"
        "    \n"
        "    def softmax_(scores, dim=-1):\n"
        "        return _stable(scores.float(), dim).type_as(scores)\n"
        "    weights = softmax_(q @ k.transpose(-2, -1))\n"
        "    return weights @ v\n"
    )
    assert "softmax" not in found.fragment.new


def test_a_test_runs_the_code_of_a_helper_that_makes_its_own_mask(tmp_path: Path) -> None:
    helper = (
        "import torch\n\n\ndef hide_(scores, fill, diagonal=True):\n"
        "    rows, columns = torch.triu_indices(*scores.shape[-2:], offset=0 if diagonal else 1)\n"
        "    scores[..., rows, columns] = fill\n"
    )
    lines = "q @ k.transpose(-2, -1)\n    hide_(weights, float('-inf'), diagonal=False)\n"
    source = model("from ops import hide_", f"{lines}    weights = F.softmax(weights, dim=-1)")
    found, _ = site(tmp_path, {"model.py": source, "ops.py": helper})
    assert found.verdict == "rewritten", found.reason
    assert found.fragment is not None
    for lines in (found.fragment.old, found.fragment.new):
        assert "[..., rows, columns] = fill" in lines
        assert "(weights, float('-inf'), diagonal=False)" in lines


RETURNED = """import torch


class Attention(torch.nn.Module):
    def attend(self, q, k, v):
        weights = torch.softmax(q @ k.transpose(-2, -1), dim=-1)
        return weights @ v, weights

    def forward(self, q, k, v):
        output, _ = self.attend(q, k, v)
        return output
"""


OTHER = "class Other(nn.Module):\n    def forward(self, x):\n        return self.attend(x)[1]\n"


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ({}, "rewritten"),
        ({"other.py": "from model import Attention\n\nmodel = Attention()\n"}, "rewritten"),
        ({"other.py": "def draw(model, q):\n    return model.attend(q, q, q)[1]\n"}, "refused"),
        ({"other.py": "draw = 'attend'\n"}, "refused"),
        ({"other.py": OTHER}, "rewritten"),
        ({"other.py": OTHER.replace("nn.Module", "Attention")}, "refused"),
        ({"other.py": OTHER, "model.py": RETURNED.replace("nn.Module)", "nn.Module, Other)")}, "refused"),
        ({"other.py": OTHER.replace("class", "from model import Attention as A\n\n\nclass")}, "refused"),
        ({"other.py": OTHER.replace("self.", "x.")}, "refused"),
        ({"other.py": "text = 'whom to attend to'  # not attend()\n"}, "rewritten"),
        ({"other.py": "what nobody can read, such as attend\n"}, "refused"),
        ({"__init__.py": "from .model import Attention\n"}, "refused"),
        ({"__init__.py": "from .model import *\n"}, "refused"),
        ({"__init__.py": "from .parts import *\n", "parts.py": "import model\n"}, "rewritten"),
        ({"__init__.py": "from .parts import *\n", "parts.py": "from .model import Attention\n"}, "refused"),
        ({"__init__.py": "from .parts import *\n", "parts.py": "from .model import *\n"}, "refused"),
        ({"model.py": RETURNED + "\n\n__all__ = ['Attention']\n"}, "refused"),
    ],
)
def test_weights_are_left_out_where_all_callers_are_known(
    tmp_path: Path, others: dict[str, str], verdict: str
) -> None:
    found, after = site(tmp_path, {"model.py": RETURNED} | others)
    assert found.verdict == verdict, found.reason
    assert ("return torch.nn.functional.scaled_dot_product_attention(" in after) == (verdict == "rewritten")
    if verdict == "rewritten":
        assert any("become None" in each for each in found.assumptions)


PADDED = """import torch
from batches import pad


def attend(q, k, v, lengths):
    q, hidden = pad(q, lengths)
    scores = q @ k.transpose(-2, -1)
    scores = scores.masked_fill(hidden[:, None], float("-inf"))
    v, _ = pad(v, lengths)
    return torch.softmax(scores, dim=-1) @ v
"""
PAD = """def pad(x, lengths):
    most = lengths.max().item()
    most += 1
    new = [each.new_zeros(most, x[0].shape[-1]) for each in x]
    hidden = x[0].new_ones(len(x), most).bool()
    for at, each in enumerate(lengths.tolist()):
        new[at][:each] = x[at]
        hidden[at][:each] = False
    return new, hidden
"""


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "rewritten"),
        ({".item()": ""}, "refused"),
        ({"new[at][:each] = x[at]": "x[at][:each] = new[at]"}, "refused"),
        ({"[each.new_zeros(most, x[0].shape[-1]) for each in x]": "[each for each in x]"}, "refused"),
        ({"hidden = x[0].new_ones(len(x), most).bool()": "hidden = x.hidden"}, "refused"),
    ],
)
def test_a_helper_of_another_file_may_only_change_what_it_makes(
    tmp_path: Path, changed: dict[str, str], verdict: str
) -> None:
    helper = PAD
    for old, new in changed.items():
        helper = helper.replace(old, new)
    found = site(tmp_path, {"model.py": PADDED, "batches.py": helper})[0]
    assert found.verdict == verdict, found.reason
    assert verdict == "rewritten" or "`pad()` in line 9 may change" in found.reason


HELD = (
    RETURNED[: RETURNED.index("    def forward")].replace("attend", "forward")
    + """

class Block(torch.nn.Module):
    def __init__(self):
        super(Block, self).__init__()
        self.attend = Attention()

    def forward(self, x):
        return self.attend(x, x, x)[0]
"""
)


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ("from model import Block\n\nmodel = Block()\n", "rewritten"),
        ("class Attention:\n    pass\n\n\nmodel = Attention()\n", "rewritten"),
        ("from model import Attention\n\nmodel = Attention()\n", "refused"),
        ("from model import Attention as A\n\nmodel = A()\n", "refused"),
        ("import model\n\nlayer = model.Attention()\n", "refused"),
        ("from model import *\n\nlayer = Attention()\n", "refused"),
        ("def watch(model, see):\n    model.block.register_forward_hook(see)\n", "refused"),
        ("def draw(model, x):\n    return model.attend(x, x, x)[1]\n", "refused"),
        (OTHER.replace("nn.Module", "model.Block"), "refused"),
    ],
)
def test_a_layer_leaves_out_its_weights_where_all_holders_are_known(
    tmp_path: Path, other: str, verdict: str
) -> None:
    assert site(tmp_path, {"model.py": HELD, "other.py": other})[0].verdict == verdict


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
    found, after = site(tmp_path, {"model.py": DERIVED, "layers.py": LAYERS})
    assert found.verdict == "rewritten", found.reason
    assert "dropout_p=self.dropout.p if self.dropout.training else 0.0, scale=self.scale" in after
    own = LAYERS.replace("    pass", "    def forward(self, x):\n        return x.square()")
    found, _ = site(tmp_path, {"layers.py": own})
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
    found, _ = site(tmp_path, {"model.py": DERIVED, "layers.py": LAYERS, "lib/more.py": more})
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
    found, _ = site(tmp_path, {"model.py": GELU, "other.py": other})
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
    found, _ = site(
        tmp_path,
        {
            "model.py": HEADS.replace(
                "self.attend(q @ k.transpose(-2, -1))", "torch.softmax(q @ k.mT, dim=-1)"
            ),
            "test.py": other,
        },
    )
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
    found, _ = site(tmp_path, files)
    place = "model.py, line 8" if own else "other.py, line 4"
    assert found.reason == f"`torch.nn.functional.scaled_dot_product_attention` is replaced in {place}"


def test_a_subclass_is_found_through_the_files_between(tmp_path: Path) -> None:
    between = (
        "import model\nfrom model import Attention as Base\n\nclass Middle(model.Attention):\n    pass\n"
    )
    below = "import {0}\n\n\nclass Other({0}.{1}):\n    def softmax(self, scores):\n        return scores\n"
    for name in ("Base", "Middle"):
        files = {"model.py": DERIVED, "layers.py": LAYERS, "between.py": between}
        found, _ = site(tmp_path, {**files, "below.py": below.format("between", name)})
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
    one, _ = site(tmp_path, {name: SCRIPT, "other.py": other}, name)
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
    one, _ = site(tmp_path, {"model.py": model, "other.py": below.format(body=body)})
    assert one.verdict == "refused"
    assert "means something else in the subclass `Other`" in one.reason
    one, _ = site(tmp_path, {"model.py": model, "other.py": below.format(body="    pass\n")})
    assert one.verdict == "rewritten"


def test_lines_of_a_script_that_are_differentiated_twice_stay(tmp_path: Path) -> None:
    source = SCRIPT + "\n(g,) = torch.autograd.grad(out.sum(), q, create_graph={again})\n"
    one, _ = site(tmp_path, {"model.py": source.format(again=True)})
    assert one.verdict == "refused"
    assert "create_graph" in one.reason
    one, _ = site(tmp_path, {"model.py": source.format(again=False)})
    assert one.verdict == "rewritten"


HOOKED = {
    "the layer": "for block in blocks:\n    block.attend.register_forward_hook(print)\n",
    "the layer under a name": "layer = model.blocks[0].attend\nlayer.register_forward_hook(print)\n",
    "the layer by its path": "model.get_submodule('blocks.0.attend').register_full_backward_hook(print)\n",
    "the layer by its name": (
        "for name, layer in blocks.named_modules():\n"
        "    if name.endswith('attend'):\n"
        "        layer.register_forward_hook(print)\n"
    ),
    "another layer by its name": "dict(blocks.named_modules())['0.norm'].register_forward_hook(print)\n",
    "the layer of a class in another file": "blocks[0].attend.register_forward_hook(print)\n",
    "every layer": "for layer in blocks.modules():\n    layer.register_forward_hook(print)\n",
    "every layer without others": (
        "def see(layer):\n"
        "    if len(list(layer.children())) == 0:\n"
        "        layer.register_forward_hook(print)\n\n\n"
        "blocks.apply(see)\n"
    ),
    "every layer but containers": (
        "from torch import nn\n\n\n"
        "def see(layer):\n"
        "    if not isinstance(layer, nn.Sequential) and not (layer == blocks):\n"
        "        layer.register_forward_hook(print)\n\n\n"
        "blocks.apply(see)\n"
    ),
    "every layer of a program": (
        "from torch.nn.modules.module import register_module_forward_hook as see\n"
        "from torch.nn.modules import module\n\n"
        "module.register_module_forward_hook(print)\n"
    ),
    "another class of layers": (
        "from torch import nn\n\n"
        "for layer in blocks.modules():\n"
        "    if isinstance(layer, nn.Linear):\n"
        "        layer.register_forward_hook(print)\n"
    ),
    "another layer": "model.blocks[0].norm.register_forward_hook(print)\n",
}
HEADS = """import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.Softmax(dim=-1)

    def forward(self, q, k, v):
        weights = self.attend(q @ k.transpose(-2, -1))
        return weights @ v
"""


@pytest.mark.parametrize("case", HOOKED)
def test_a_layer_that_another_file_hooks_is_still_called(tmp_path: Path, case: str) -> None:
    files = {"model.py": HEADS, "recorder.py": "from model import blocks\n" + HOOKED[case]}
    if case == "the layer of a class in another file":
        files |= {"twin.py": HEADS, "recorder.py": files["recorder.py"].replace("from model", "from twin")}
    found, _ = site(tmp_path, files)
    assert found.verdict == ("rewritten" if "another" in case else "refused")
    assert ("`attend` would no longer be called, and recorder.py, line" in found.reason) == (
        found.verdict == "refused"
    )


EXCHANGED = {
    "another layer": "model.attend = nn.Sigmoid()\n",
    "none": "model.attend = None\n",
    "by a function for its class": (
        "def swap(model):\n"
        "    for name, layer in model.named_children():\n"
        "        if isinstance(layer, nn.Softmax):\n"
        "            setattr(model, name, nn.Sigmoid())\n"
    ),
    "its dimension": "model.attend.dim = 1\n",
    "its class": "nn.Softmax = nn.Sigmoid\n",
    "its class in the file": "import model as file\n\nfile.nn.Softmax = nn.Sigmoid\n",
    "the method of its class": "nn.Softmax.forward = print\n",
    "the scale": "model.scale = nn.Parameter(torch.ones(()))\n",
    "not the option of another object": "model.attend = 0.1\n",
    "not the layers of another class": (
        "def swap(model):\n"
        "    for name, layer in model.named_children():\n"
        "        if isinstance(layer, nn.Linear):\n"
        "            setattr(model, name, nn.Identity())\n"
    ),
}


@pytest.mark.parametrize("case", EXCHANGED)
def test_a_layer_that_another_file_replaces_is_still_called(tmp_path: Path, case: str) -> None:
    scaled = HEADS.replace("k.transpose(-2, -1)", "k.transpose(-2, -1) * self.scale")
    scaled = scaled.replace("nn.Softmax(dim=-1)\n", "nn.Softmax(dim=-1)\n        self.scale = 0.2\n")
    head = "import torch\nfrom torch import nn\nfrom model import Attention\n\nmodel = Attention()\n"
    found, _ = site(tmp_path, {"model.py": scaled, "other.py": head + EXCHANGED[case]})
    assert found.verdict == ("rewritten" if case.startswith("not") else "refused")
    assert ("replaced in other.py, line" in found.reason) == (found.verdict == "refused")


OWN = {
    "the method of the layer": "model.attend.forward = print\n",
    "the methods of all layers": "for layer in model.children():\n    layer.forward = print\n",
    "the method of the class": "Attention.weights = print\n",
    "the method of an object": "model.__dict__['weights'] = print\n",
    "a function, by its name": "globals()['weights'] = print\n",
    "not the method of another object": "model.other = print\n",
}


@pytest.mark.parametrize("case", OWN)
def test_what_the_file_replaces_itself_is_still_called(tmp_path: Path, case: str) -> None:
    source = HEADS
    if "layer" not in case:
        function = "def weights({}scores):\n{}    return scores.softmax(dim=-1)\n"
        method = function.format("self, ", "    ").replace("def", "    def")
        of_class = "a function" not in case
        source = source.replace("self.attend(", "self.weights(" if of_class else "weights(")
        source += "\n" + method if of_class else "\n\n" + function.format("", "")
    (tmp_path / "model.py").write_text(f"{source}\n\nmodel = Attention()\n{OWN[case]}")
    (found,) = search([tmp_path])
    assert isinstance(found, Searched)
    assert [each.verdict for each in found.sites if each.verdict == "rewritten"] == (
        ["rewritten"] if case.startswith("not") else []
    )


COMPILED = {
    "the model is scripted": (
        "import torch\nfrom model import Attention\n\ntorch.jit.script(Attention())\n",
        "TorchScript compiles models in other.py, line 4",
    ),
    "the model is traced": (
        "import model\nfrom torchvision.models import feature_extraction as fx\n\n"
        "fx.create_feature_extractor(model.Attention())\n",
        "torch.fx compiles models in other.py, line 4",
    ),
    "a helper that a test calls scripts it": (
        "import torch\n\n\ndef check(model):\n    torch.jit.script(model)\n",
        "TorchScript compiles models in other.py, line 5",
    ),
    "models of other files are scripted": ("import torch\n\ntorch.jit.script(torch.nn.Linear(2, 2))\n", ""),
    "a function of another file is scripted": (
        "import torch\nimport model\n\n\n@torch.jit.script\ndef f(x):\n    return x\n",
        "",
    ),
}
MASKED = HEADS.replace("q, k, v)", "q, k, v, mask)").replace("(-2, -1))", "(-2, -1) + mask)")


@pytest.mark.parametrize("case", COMPILED)
def test_what_compiles_whole_models_must_support_the_new_lines(tmp_path: Path, case: str) -> None:
    other, reason = COMPILED[case]
    test = "from model import Attention\nfrom other import check\n\ncheck(Attention())\n"
    files = {"model.py": MASKED, "other.py": other} | ({"test.py": test} if "check" in other else {})
    found, _ = site(tmp_path, files)
    assert found.verdict == ("refused" if reason else "rewritten")
    assert reason in found.reason
    found, _ = site(tmp_path, files | {"model.py": HEADS})
    assert found.verdict == "rewritten", "the plain call is supported"


USED = """import torch
from {imported} import Attention


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = Attention()

    def forward(self, x):
        output, weights = self.attend(x, x, x)
        return {returned}
"""
ALONE = HELD[: HELD.index("\n\nclass Block")]


def used(imported: str = "model", returned: str = "output") -> str:
    return USED.format(imported=imported, returned=returned)


@pytest.mark.parametrize(
    ("files", "verdict"),
    [
        ({"block.py": used()}, "rewritten"),
        ({"block.py": used(".model")}, "rewritten"),
        ({"block.py": used("other")}, "refused"),
        ({"block.py": used(returned="output, weights")}, "refused"),
        ({"block.py": used() + "\n\nlayer = Attention()\n"}, "refused"),
        ({"block.py": used(), "draw.py": "from model import Attention\n\nlayer = Attention()\n"}, "refused"),
        ({"block.py": used(), "draw.py": "def draw(block, x):\n    return block.attend(x)[1]\n"}, "refused"),
        (
            {"block.py": used(), "draw.py": "def watch(b, f):\n    b.register_forward_hook(f)\n"},
            "refused",
        ),
        ({"block.py": used(), "model.py": ALONE + "\n\nlayer = Attention()\n"}, "refused"),
        ({"block.py": used(), "__init__.py": "from .model import Attention\n"}, "refused"),
    ],
)
def test_weights_are_left_out_where_one_other_file_has_all_callers(
    tmp_path: Path, files: dict[str, str], verdict: str
) -> None:
    found, _ = site(tmp_path, {"model.py": ALONE} | files)
    assert found.verdict == verdict, found.reason
    if verdict == "rewritten":
        assert any("line 11 of block.py calls `attend`" in each for each in found.assumptions)


PRODUCTS = """import math

import torch
from torch import Tensor, nn

SIZE = 64


class Base(nn.Module):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        made = torch.matmul(q, k.transpose(-2, -1))
        return made / math.sqrt(q.size(-1))
"""
INHERITS = """import math
import torch
from products import Base


class Attention(Base):
    def forward(self, q, k, v):
        weights = torch.softmax(self.scores(q, k), dim=-1)
        return weights @ v
"""


def test_a_product_that_is_a_method_of_a_base_class_in_another_file(tmp_path: Path) -> None:
    found, after = site(tmp_path, {"model.py": INHERITS, "products.py": PRODUCTS})
    assert found.verdict == "rewritten", found.reason
    assert "return torch.nn.functional.scaled_dot_product_attention(q, k, v)" in after
    assert found.fragment is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import math\n", "import cmath as math\n"),
        ("import math\n", ""),
        ("import torch\n", "import torch\nmath = None\n"),
        ("(self, q, k, v):", "(self, q, k, v, math=None):"),
    ],
)
def test_names_of_such_a_method_mean_the_same_here(tmp_path: Path, old: str, new: str) -> None:
    found, _ = site(tmp_path, {"model.py": INHERITS.replace(old, new), "products.py": PRODUCTS})
    assert found.verdict == "refused"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("math.sqrt(q.size(-1))", "SIZE**0.5"),
        ("    def scores", "    @torch.compiler.disable\n    def scores"),
        ("\n", "\r\n"),
        ("        made =", "        super().scores()\n        made ="),
    ],
)
def test_a_method_that_depends_on_its_file_stays(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "products.py").write_text(PRODUCTS.replace(old, new), encoding="utf-8", newline="")
    found, _ = site(tmp_path, {"model.py": INHERITS})
    assert found.verdict == "refused"


def test_a_layer_of_another_file_that_views_the_output_gets_it_contiguous(tmp_path: Path) -> None:
    layer = "class Merge(torch.nn.Module):\n    def forward(self, x):\n        return {}\n"
    source = (
        "import torch\nfrom layers import Merge\n\n\nclass Attention(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.merge = Merge()\n\n"
        "    def forward(self, q, k, v):\n"
        "        return self.merge(torch.softmax(q @ k.transpose(-2, -1), dim=-1) @ v)\n"
    )
    for made, contiguous in (("x.view(x.size(0), -1)", True), ("x.flatten(1)", False)):
        _, after = site(tmp_path, {"model.py": source, "layers.py": "import torch\n\n" + layer.format(made)})
        assert (".contiguous()" in after) == contiguous
