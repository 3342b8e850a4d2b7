"""Lines that call einops: tested with the installed one, and said to need it where there is none."""

import sys
from pathlib import Path

import pytest

from flashmore.upgrade.find import find_sites
from flashmore.upgrade.site import Site
from flashmore.upgrade.verify.allowed import NotAllowed
from flashmore.upgrade.verify.functions import functions_of
from flashmore.upgrade.verify.verifier import Verifier

SOURCE = """
import einops
import torch

from einops import {name} as {alias}


def attend(q, k, v):
    dots = {call}
    return einops.einsum(dots.softmax(dim=-1), v, 'b h i j, b h j d -> b h i d')
"""
PRODUCT = "einops.einsum(q, k, 'b h i d, b h j d -> b h i j')"
CALLS = {
    "einops.einsum": ("einsum", "einsum", PRODUCT),
    "under another name": ("einsum", "es", PRODUCT.replace("einops.einsum", "es")),
}


def site(case: str) -> Site:
    name, alias, call = CALLS[case]
    (found,) = find_sites(SOURCE.format(name=name, alias=alias, call=call))
    return found


@pytest.mark.parametrize("case", ["einops.einsum", "under another name"])
def test_lines_that_call_einops_are_tested(case: str, verifier: Verifier) -> None:
    found = site(case)
    assert found.fragment is not None
    assert "= einsum(q" in found.fragment.old
    verification = verifier.verify(found)
    assert verification.passed, verification.why_not


def shadow(folder: Path) -> Path:
    """A file that would be imported as einops, and the file that it would leave behind."""
    canary = folder / "imported"
    (folder / "einops.py").write_text(f"open({str(canary)!r}, 'w')\n", encoding="utf-8")
    return canary


def test_einops_of_no_installed_distribution_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = shadow(tmp_path)
    monkeypatch.delitem(sys.modules, "einops", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    fragment = site("einops.einsum").fragment
    assert fragment is not None
    with pytest.raises(NotAllowed, match="needs einops"):
        functions_of(fragment)
    assert not canary.exists()
