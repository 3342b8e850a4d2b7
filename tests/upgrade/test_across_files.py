"""Definitions in other files of the project: what is followed, and what is not."""

from pathlib import Path

import pytest

from source_files import site_of

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
        found, after = site_of(tmp_path, files | {"pkg/model.py": source}, "pkg/model.py")
    else:
        found, after = site_of(tmp_path, files | {"model.py": source})
    assert found.verdict == "rewritten", found.reason
    assert "F.scaled_dot_product_attention(q, k, v" in after
    assert found.fragment is not None


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_a_name_of_which_the_definition_is_unclear_is_left_alone(tmp_path: Path, case: str) -> None:
    source, files = LEFT_ALONE[case]
    found, after = site_of(tmp_path, files | {"model.py": source})
    assert found.verdict == "refused"
    assert after == source


def test_a_test_runs_the_code_of_the_helper(tmp_path: Path) -> None:
    found, _ = site_of(tmp_path, {"model.py": model("from ops import softmax"), "ops.py": OPS})
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
    found, _ = site_of(tmp_path, {"model.py": source, "ops.py": helper})
    assert found.verdict == "rewritten", found.reason
    assert found.fragment is not None
    for lines in (found.fragment.old, found.fragment.new):
        assert "[..., rows, columns] = fill" in lines


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
    found, after = site_of(tmp_path, {"model.py": INHERITS, "products.py": PRODUCTS})
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
    found, _ = site_of(tmp_path, {"model.py": INHERITS.replace(old, new), "products.py": PRODUCTS})
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
    found, _ = site_of(tmp_path, {"model.py": INHERITS})
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
        _, after = site_of(
            tmp_path, {"model.py": source, "layers.py": "import torch\n\n" + layer.format(made)}
        )
        assert (".contiguous()" in after) == contiguous
