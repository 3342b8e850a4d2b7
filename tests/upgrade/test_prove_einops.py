"""Lines that call einops: proved where it is importable, and said to need it where it is not."""

import os
from pathlib import Path

import pytest

from flashmore.upgrade.find import find_sites
from flashmore.upgrade.prove.prover import prove
from flashmore.upgrade.site import Site

SOURCE = """
import einops

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
def test_lines_that_call_einops_are_proved(case: str) -> None:
    found = site(case)
    assert found.fragment is not None
    assert "= einsum(q" in found.fragment.old
    proof = prove(found)
    assert proof.proved, proof.why_not


def test_without_einops_the_reason_says_that_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "einops.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    proof = prove(site("einops.einsum"))
    assert not proof.proved
    assert "needs einops" in str(proof.why_not)
    assert "not proved: needs einops" in proof.summary()
