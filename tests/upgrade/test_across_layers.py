"""Layers that a file hooks, replaces or compiles: they are still called."""

from pathlib import Path

import pytest

from flashmore.upgrade.search import search
from flashmore.upgrade.site import Searched
from source_files import site_of

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
    found, _ = site_of(tmp_path, files)
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
    found, _ = site_of(tmp_path, {"model.py": scaled, "other.py": head + EXCHANGED[case]})
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
    found, _ = site_of(tmp_path, files)
    assert found.verdict == ("refused" if reason else "rewritten")
    assert reason in found.reason
    found, _ = site_of(tmp_path, files | {"model.py": HEADS})
    assert found.verdict == "rewritten", "the plain call is supported"
