"""Requirements of a project that exclude the versions of torch which have what a rewrite calls."""

from pathlib import Path

import pytest

from flashmore.upgrade.search import search
from flashmore.upgrade.site import Searched, Site

PLAIN = "import torch\n\ndef attend(q, k, v):\n    return (q @ k.mT / q.size(-1) ** 0.5).softmax(-1) @ v\n"
SCALED = "import torch\n\ndef attend(q, k, v):\n    return (q @ k.mT).softmax(-1) @ v\n"


def site_of(folder: Path, source: str, name: str, text: str) -> Site:
    (folder / ".git").mkdir(exist_ok=True)
    (folder / "package").mkdir(exist_ok=True)
    (folder / "package" / "model.py").write_text(source, encoding="utf-8")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    (found,) = search([folder / "package" / "model.py"])
    assert isinstance(found, Searched)
    return found.sites[0]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("requirements.txt", "numpy\ntorch==1.13.1+cu117  # the last one\n", "torch==1.13.1+cu117"),
        ("requirements/base.txt", "torch >= 1.8, < 2\n", "torch>= 1.8, < 2"),
        ("requirements-gpu.txt", "torch~=1.12\n", "torch~=1.12"),
        ("setup.py", "setup(install_requires=['numpy', 'torch<=1.13'])\n", "torch<=1.13"),
        ("setup.cfg", "[options]\ninstall_requires =\n    torch==1.9.*\n", "torch==1.9.*"),
        ("environment.yml", "dependencies:\n  - pytorch=1.11\n  - torchvision=0.12\n", "torch==1.11"),
        (
            "pyproject.toml",
            '[project]\nname = "a"\ndependencies = ["torch[x]>=1.9,<2.0"]\n',
            "torch<2.0,>=1.9",
        ),
        ("pyproject.toml", '[project.optional-dependencies]\ngpu = ["torch==1.10"]\n', "torch==1.10"),
        ("pyproject.toml", '[tool.poetry.dependencies]\ntorch = "^1.13"\n', "torch>=1.13,<2"),
        ("pyproject.toml", '[tool.poetry.dependencies.torch]\nversion = "1.12.1"\n', "torch==1.12.1"),
    ],
)
def test_versions_without_the_function_are_a_reason(name: str, text: str, told: str, tmp_path: Path) -> None:
    site = site_of(tmp_path, PLAIN, name, text)
    assert site.verdict == "refused"
    assert site.edits == ()
    file = name.rpartition("/")[2]
    needs = "but `scaled_dot_product_attention` needs torch 2.0 or newer"
    assert site.reason == f"{file} requires {told}, {needs}"


def test_a_version_without_one_argument_is_a_reason_only_where_it_is_given(tmp_path: Path) -> None:
    given = ("requirements.txt", "torch==2.0.1\n")
    assert site_of(tmp_path, PLAIN, *given).verdict == "rewritten"
    refused = site_of(tmp_path, SCALED, *given)
    assert refused.reason == "requirements.txt requires torch==2.0.1, but `scale` needs torch 2.1 or newer"


@pytest.mark.parametrize(
    "text", ["torch>=1.10\n", "torch>=2.0,<3\n", "pytorch-lightning==1.5\ntorch!=2.0.0\n"]
)
def test_where_older_versions_are_only_allowed_a_newer_one_is_assumed(text: str, tmp_path: Path) -> None:
    site = site_of(tmp_path, SCALED, "requirements.txt", text)
    assert site.verdict == "rewritten"
    assert any("torch is 2.1 or newer (requirements.txt allows older" in each for each in site.assumptions)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("requirements.txt", "torch\n"),
        ("requirements.txt", "torchvision==0.9\ntorch>=2.4\n# torch==1.9\n"),
        ("requirements.txt", "torch==what.ever\n"),
        ("requirements.txt", f"torch=={'9' * 5000}\n"),
        ("pyproject.toml", f"[tool.poetry.dependencies]\ntorch = '^{'9' * 5000}'\n"),
        ("pyproject.toml", "[project\n"),
        ("pyproject.toml", '[project]\ndependencies = "torch==1.9"\n'),
        ("notes.txt", "torch==1.9\n"),
    ],
)
def test_nothing_is_said_where_nothing_is_required(name: str, text: str, tmp_path: Path) -> None:
    site = site_of(tmp_path, SCALED, name, text)
    assert site.verdict == "rewritten"
    assert site.assumptions == ()
