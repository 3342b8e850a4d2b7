"""Double backward in the project: who is refused for whose penalty, and what is not."""

import re
import subprocess
from pathlib import Path

import pytest

from flashmore.upgrade.find import find_sites
from flashmore.upgrade.project.twice import uses
from flashmore.upgrade.project.walk import project_files, python_files
from flashmore.upgrade.search import search
from flashmore.upgrade.site import Searched, Site
from flashmore.upgrade.source.module import Module

ATTENTION = """import torch

class {name}:
    def forward(self, q, k, v):
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v
"""
PENALTY = """import torch

def penalty(disc, x):
    out = disc(x)
    (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return gradient.norm()
"""


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return folder


def sites(*paths: Path) -> dict[str, Site]:
    """The one site of each file, by the file's name."""
    return {
        Path(found.path).name: found.sites[0]
        for found in search(paths)
        if isinstance(found, Searched) and found.sites
    }


def refused(*paths: Path) -> set[str]:
    return {name for name, site in sites(*paths).items() if site.verdict == "refused"}


def made(*names: str) -> dict[str, str]:
    return {f"{name}.py": ATTENTION.format(name=name.title()) for name in names}


CALLED = PENALTY + "\ndef main(x):\n    penalty(Disc(), x)\n"
TRAIN = "from disc import Disc\n" + CALLED
GRAD = "(gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)"
LINKED = {
    "the trainer imports it": {"train.py": TRAIN},
    "through another file": {
        "train.py": "import nets\n" + CALLED.replace("Disc()", "nets.Disc()"),
        "nets.py": "from disc import Disc\n",
    },
    "a third file brings both together": {
        "losses.py": PENALTY,
        "train.py": "import losses\nfrom disc import Disc\n\ndef main():\n    losses.penalty(Disc(), 1)\n",
    },
    "under another name": {
        "lib/__init__.py": "from .losses import penalty as gp\n",
        "lib/losses.py": PENALTY,
        "train.py": "from lib import gp\nfrom disc import Disc\nloss = gp(Disc(), 1)\n",
    },
    "by a function that is given the output": {
        "train.py": TRAIN.replace(
            "(gradient,) = torch.autograd.grad(out.sum(), x,", "torch.autograd.backward(out.sum(),"
        ).replace("gradient.norm()", "x.grad.norm()"),
    },
    "by its place": {
        "train.py": TRAIN.replace(
            "(gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)",
            "out.backward(x, True, True)",
        ).replace("gradient.norm()", "x.grad.norm()"),
    },
    "while it is trained": {"train.py": TRAIN.replace("=True", "=disc.training")},
    "it is a test of its derivatives": {
        "test_disc.py": "from torch.autograd import gradgradcheck\nfrom disc import Disc\n\ndef test_it():\n"
        "    gradgradcheck(Disc().forward, ())\n",
    },
}
WITHIN = """import torch


class Energy(torch.nn.Module):
    def attend(self, q, k, v):
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    def other(self, q, k, v):
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    def forces(self, x):
        energy = self.attend(x, x, x).sum()
        return torch.autograd.grad(energy, x, create_graph=True)
"""
ITSELF = """import torch


class {base}(torch.nn.Module):
    def forces(self, x):
        energy = self(x).sum()
        return torch.autograd.grad(energy, x, create_graph=True)


class {name}({bases}):
    def forward(self, x):
        return (x @ x.transpose(-2, -1)).softmax(-1) @ x
"""
UNSEEN = {
    "a partial function": {
        "train.py": "from functools import partial\n"
        + TRAIN.replace(GRAD, "gradient = partial(torch.autograd.grad, create_graph=True)(out, x)"),
    },
    "nobody calls the penalty": {"train.py": "from disc import Disc\n" + PENALTY},
    "through a caller of the caller": {
        "losses.py": PENALTY
        + "\nclass Loss:\n    def __call__(self, d, x):\n        return penalty(d(x), x)\n",
        "loop.py": "from losses import Loss\n\ndef step(d, x, loss=Loss()):\n    return loss(d, x)\n",
        "main.py": "from loop import step\nfrom disc import Disc\nstep(Disc(), 1)\n",
    },
    "the attribute comes from a caller that is not seen": {
        "train.py": "import torch\nfrom disc import Disc\n\nclass Trainer:\n    def __init__(self, disc):\n"
        "        self.disc = disc\n\n    def loss(self, x):\n        out = self.disc(x)\n"
        "        return torch.autograd.grad(out.sum(), x, create_graph=True)\n",
    },
    "it is passed on as an argument": {
        "train.py": TRAIN.replace("penalty(Disc(), x)", "run(penalty, Disc(), x)"),
    },
    "it is looked up by a name": {
        "train.py": TRAIN.replace("penalty(Disc(), x)", "penalty(getattr(disc, x)(), x)").replace(
            "from disc import Disc", "import disc"
        ),
    },
    "it comes from a registry": {
        "train.py": TRAIN.replace("from disc import Disc", "from registry import NETS").replace(
            "penalty(Disc(), x)", "penalty(NETS['disc'](), x)"
        ),
        "registry.py": "import disc\nNETS = {}\n",
        "disc.py": "from registry import NETS\n"
        + made("disc")["disc.py"].replace("class", "@NETS.add\nclass"),
    },
    "a dictionary of options": {
        "train.py": TRAIN.replace("create_graph=True", "**{'create_graph': True}"),
    },
}
APART = {
    "the other network is differentiated": {
        "train.py": TRAIN.replace("import Disc", "import Disc\nfrom critic import Critic").replace(
            "penalty(Disc(), x)", "penalty(Critic(), Disc()(x))"
        ),
        "critic.py": "class Critic:\n    pass\n",
    },
    "what it made is differentiated by": {
        "train.py": "import torch\nfrom disc import Disc\n\ndef loss(y):\n    x = Disc()(y)\n"
        "    out = x * x\n    return torch.autograd.grad(out.sum(), x, create_graph=True)\n",
    },
    "another program": {"other.py": PENALTY},
    "a test of something else": {"tests/test_other.py": "import other\n" + PENALTY, "other.py": "x = 1\n"},
    "only once": {"train.py": TRAIN.replace("create_graph=True", "create_graph=False")},
    "in a comment": {"train.py": "from disc import Disc\n# create_graph=True\n"},
    "the attention's file is imported by nobody's caller": {
        "losses.py": PENALTY,
        "train.py": "import losses\nfrom disc import Disc\nDisc()\n",
    },
}


@pytest.mark.parametrize("case", LINKED)
def test_attention_that_is_differentiated_twice_elsewhere_is_refused(tmp_path: Path, case: str) -> None:
    tree(tmp_path, made("disc") | LINKED[case])
    assert refused(tmp_path) == {"disc.py"}


def test_a_method_that_made_what_is_differentiated_is_refused_alone(
    tmp_path: Path,
) -> None:
    tree(tmp_path, {"energy.py": WITHIN})
    (found,) = search([tmp_path])
    assert isinstance(found, Searched)
    assert {site.symbol: site.verdict for site in found.sites} == {
        "Energy.attend": "refused",
        "Energy.other": "rewritten",
    }


def test_a_class_whose_objects_differentiate_themselves_is_refused(tmp_path: Path) -> None:
    below = ITSELF.format(base="Base", name="Energy", bases="Base")
    own = below.replace("\n\nclass Energy(Base):\n", "").replace("class Base", "class Energy")
    tree(tmp_path, {"own.py": own, "below.py": below})
    assert refused(tmp_path) == {"own.py", "below.py"}


@pytest.mark.parametrize("case", UNSEEN)
def test_what_is_differentiated_and_cannot_be_seen_is_an_assumption(tmp_path: Path, case: str) -> None:
    tree(tmp_path, made("disc") | UNSEEN[case])
    (site,) = sites(tmp_path).values()
    assert site.verdict == "rewritten"
    (assumed,) = [each for each in site.assumptions if "second derivatives" in each]
    assert re.search(r"\.py, line \d+ \(create_graph=True\)", assumed)


@pytest.mark.parametrize("case", APART)
def test_a_penalty_without_a_link_condemns_nothing(tmp_path: Path, case: str) -> None:
    tree(tmp_path, made("disc") | APART[case])
    (site,) = sites(tmp_path).values()
    assert site.verdict == "rewritten"
    assert not any("second derivatives" in each for each in site.assumptions)


def test_the_reason_names_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, made("disc") | LINKED["a third file brings both together"])
    monkeypatch.chdir(tmp_path)
    (site,) = sites(Path("disc.py")).values()
    assert site.reason.endswith(": losses.py, line 5 (create_graph=True)")
    assert site.edits == ()


def test_a_package_that_imports_everything_does_not_tie_everything_together(tmp_path: Path) -> None:
    package = {f"nets/{name}": source for name, source in made("disc", "words").items()}
    package["nets/__init__.py"] = (
        "from .disc import Disc\nfrom .words import Words\nfrom . import disc, words\n"
    )
    for line, name in (
        ("from nets import Disc", "Disc"),
        ("from nets import disc", "disc.Disc"),
        ("import nets", "nets.Disc"),
        ("import nets.disc", "nets.disc.Disc"),
        ("from nets import *", "Disc"),
    ):
        tree(tmp_path, package | {"train.py": f"{line}\n{PENALTY}\npenalty({name}(), 1)\n"})
        assert refused(tmp_path) == {"disc.py"}, line


def test_one_file_is_judged_by_the_project_that_it_belongs_to(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {"src/pkg/__init__.py": "", "src/pkg/disc.py": made("disc")["disc.py"], "pyproject.toml": ""},
    )
    tree(tmp_path, {"scripts/train.py": "from pkg.disc import Disc\n" + CALLED})
    assert refused(tmp_path / "src/pkg/disc.py") == {"disc.py"}
    (tmp_path / "pyproject.toml").unlink()
    assert refused(tmp_path / "src/pkg/disc.py") == set()
    tree(tmp_path, {"src/train.py": "from pkg.disc import Disc\n" + CALLED})
    assert refused(tmp_path / "src/pkg/disc.py") == {"disc.py"}


def test_a_flag_that_somebody_may_set_is_an_assumption(tmp_path: Path) -> None:
    tree(tmp_path, made("disc") | {"train.py": TRAIN.replace("=True", "=second_order")})
    (site,) = sites(tmp_path).values()
    assert site.verdict == "rewritten"
    (assumed,) = [each for each in site.assumptions if "second derivatives" in each]
    assert "train.py, line 6 (create_graph=second_order)" in assumed


def test_a_project_beyond_the_limit_is_told(tmp_path: Path) -> None:
    tree(tmp_path, made("a", "b", "c") | {"pyproject.toml": ""})
    found, (left_out,) = project_files(tmp_path / "a.py", most=2)
    assert (len(found), left_out.path) == (2, str(tmp_path.resolve()))
    assert "more than 2 files" in left_out.reason
    assert project_files(tmp_path / "a.py", most=3)[1] == []


def test_an_environment_inside_the_project_is_other_peoples(tmp_path: Path) -> None:
    tree(tmp_path, made("disc") | {".venv/pyvenv.cfg": "", ".venv/lib/torch/x.py": PENALTY})
    assert python_files([tmp_path])[0] == [tmp_path / "disc.py"]
    assert python_files([tmp_path / ".venv"])[0] == [tmp_path / ".venv/lib/torch/x.py"]


def test_files_that_cannot_be_parsed_or_read_hinder_nothing(tmp_path: Path) -> None:
    tree(tmp_path, made("disc") | {"train.py": TRAIN, "broken.py": "create_graph=True penalty (\n"})
    (tmp_path / "bytes.py").write_bytes(b"\xff create_graph=True penalty\0")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere.py").symlink_to(tmp_path / "missing.py")
    assert refused(tmp_path) == {"disc.py"}


@pytest.mark.parametrize("marker", ["pyproject.toml", "__init__.py", None])
def test_the_project_ends_where_a_link_leads_out_of_it(tmp_path: Path, marker: str | None) -> None:
    outside = tree(tmp_path / "outside", {"pkg/train.py": "from disc import Disc\n" + CALLED})
    project = tree(tmp_path / "project", made("disc") | ({marker: ""} if marker else {}))
    (project / "link.py").symlink_to(outside / "pkg" / "train.py")
    (project / "sub").symlink_to(outside / "pkg")
    found, left_out = project_files(project / "disc.py")
    assert all(path.resolve().is_relative_to(project) for path in found)
    # Without a marker, only files beside are looked at.
    assert {Path(one.path).name for one in left_out} == {"link.py", *(["sub"] if marker else [])}
    site = sites(project / "disc.py")["disc.py"]
    assert site.verdict == "rewritten"
    (assumed,) = [each for each in site.assumptions if "second derivatives" in each]
    assert "unread file" in assumed
    assert str(outside / "pkg" / "train.py") in assumed


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("torch.autograd.grad(y, x, create_graph=True)", "create_graph=True"),
        ("torch.autograd.grad(y, x, None, True, True)", "create_graph=True"),
        ("y.backward(None, True, True)", "create_graph=True"),
        ("optimizer.step(**{'create_graph': True})", "create_graph=True"),
        ("def f(create_graph=True): y.backward(create_graph=create_graph)", "create_graph=create_graph"),
        ("torch.func.hessian(f)(x)", "torch.func.hessian()"),
        ("hessian(f, x)", "torch.autograd.functional.hessian()"),
        ("torch.func.jacfwd(torch.func.jacrev(f))(x)", "torch.func.jacfwd()"),
        ("torch.func.grad(torch.func.grad(f))(x)", "torch.func.grad() of a derivative"),
        (
            "g = lambda x: torch.func.grad(f)(x).sum()\ntorch.func.grad(g)(x)",
            "torch.func.grad() of a derivative",
        ),
        ("jacobian(f, x, strategy='forward-mode', vectorize=True)", 'strategy="forward-mode"'),
        ("fw.dual_level()", "torch.autograd.forward_ad.dual_level()"),
        ("regularizers.gradient_penalty(d, x)", "gradient_penalty()"),
        ("def f(x): return x.sum()\ntorch.func.grad(f)(x)", None),
        ("torch.autograd.grad(y, x)", None),
        ("grad(y, x, None, True, False)", None),
        ("self.hessian(x)", None),
        ("y.backward(create_graph=False)", None),
    ],
)
def test_every_way_to_take_gradients_of_gradients(line: str, what: str | None) -> None:
    import ast

    head = "import torch, regularizers\nimport torch.autograd.forward_ad as fw\n"
    head += "from torch.autograd.functional import hessian\n"
    found = uses(Module(ast.parse(f"{head}{line}\n")))
    assert [use.what for use in found if use.certain] == ([] if what is None else [what])


def test_a_comment_in_the_same_file_condemns_nothing() -> None:
    source = "# no create_graph=True here\n" + made("disc")["disc.py"]
    assert [site.verdict for site in find_sites(source)] == ["rewritten"]


def test_the_search_of_this_project_needs_no_git(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    tree(
        tmp_path,
        {"deep/disc.py": made("disc")["disc.py"], "train.py": "from deep.disc import Disc\n" + CALLED},
    )
    assert refused(tmp_path / "deep" / "disc.py") == {"disc.py"}


VIEWED = """import torch

def flat(model, x):
    out = model(x)
    return torch.autograd.grad(out.sum(), x)[0].view(-1)
"""
SCALE = """import torch

class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return (gradient.view(-1) * 2).view(gradient.shape)
"""
LAYOUTS = {
    "what is differentiated": {"train.py": "from disc import Disc\n" + VIEWED + "\nflat(Disc(), 1)\n"},
    "a Function": {
        "ops.py": SCALE,
        "train.py": "from disc import Disc\nfrom ops import Scale\n\nDisc()(Scale.apply(x))\n",
    },
    "a hook of a layer": {
        "train.py": "from disc import Disc\n\ndef flat(layer, given, of):\n    return given[0].view(-1)\n\n"
        "def main(x):\n    Disc().register_full_backward_hook(flat)\n"
    },
}
PROJECTED = """import torch
from torch import nn

class Disc(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v
"""


@pytest.mark.parametrize("case", LAYOUTS)
def test_who_may_read_how_a_gradient_is_laid_out_is_an_assumption(tmp_path: Path, case: str) -> None:
    tree(tmp_path, made("disc") | LAYOUTS[case])
    (site,) = sites(tmp_path).values()
    assert site.verdict == "rewritten"
    (assumed,) = [each for each in site.assumptions if "laid out" in each]
    assert re.search(
        r"\.py, line \d+ \(.*\).* does not read how the gradient of `k` or `q` or `v` is", assumed
    )


@pytest.mark.parametrize("case", LAYOUTS)
def test_gradients_before_projections_are_laid_out_as_before(tmp_path: Path, case: str) -> None:
    tree(tmp_path, {"disc.py": PROJECTED} | LAYOUTS[case])
    assert not any("laid out" in each for each in sites(tmp_path)["disc.py"].assumptions)


def test_a_layout_that_is_read_elsewhere_says_nothing_of_others(tmp_path: Path) -> None:
    tree(
        tmp_path,
        made("disc", "other") | {"train.py": "from other import Other\n" + VIEWED + "\nflat(Other(), 1)\n"},
    )
    found = sites(tmp_path)
    assert any("laid out" in each for each in found["other.py"].assumptions)
    assert found["disc.py"].assumptions == ()
