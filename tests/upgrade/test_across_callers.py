"""Weights and arguments that callers in other files of the project use or change."""

from pathlib import Path

import pytest

from source_files import site_of

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
    found, after = site_of(tmp_path, {"model.py": RETURNED} | others)
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
    found = site_of(tmp_path, {"model.py": PADDED, "batches.py": helper})[0]
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
    assert site_of(tmp_path, {"model.py": HELD, "other.py": other})[0].verdict == verdict


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
    found, _ = site_of(tmp_path, {"model.py": ALONE} | files)
    assert found.verdict == verdict, found.reason
    if verdict == "rewritten":
        assert any("line 11 of block.py calls `attend`" in each for each in found.assumptions)
