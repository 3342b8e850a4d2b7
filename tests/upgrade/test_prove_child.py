"""Proofs run in a process of their own: crashes, hangs, no memory are named, and the others go on."""

from dataclasses import replace
from pathlib import Path

import pytest

from flashmore.upgrade.prove.child import fragment_from_json, fragment_to_json
from flashmore.upgrade.prove.prover import Prover, prove, prove_all
from flashmore.upgrade.site import Fragment, Input, Site

INPUTS = tuple(Input(n, n, "tensor", ("B", "H", m, "D")) for n, m in zip("qkv", "LSS", strict=True))
OLD = "def old(q, k, v):\n    return (q @ k.mT * 0.2).softmax(-1) @ v\n"
NEW = "def new(q, k, v):\n    {}\n    return F.scaled_dot_product_attention(q, k, v, scale=0.2)\n"


def site(line: str = "pass") -> Site:
    fragment = Fragment(INPUTS, OLD, NEW.format(line))
    return Site("model.py", 1, 3, "f", "rewritten", "", fragment=fragment, assumptions=("it rains",))


def test_one_that_fails_leaves_the_others_proved() -> None:
    lines = (
        "pass",
        "x = [q + number for number in range(10**9)]",  # hangs, and eats memory meanwhile
        "x = torch.zeros(10**12)",  # no memory
        "x = list(range(10**9))",  # none of Python's either
        "pass",
    )
    told: list[int] = []
    proofs = prove_all([site(line) for line in lines], seconds=5, memory_bytes=2**28, after_each=told.append)
    assert [proof.proved for proof in proofs] == [True, False, False, False, True]
    assert all(proof.why_not for proof in proofs[1:4])
    assert all("it rains" in proof.assumptions for proof in proofs)
    assert told == [1, 2, 3, 4, 5]


ENDLESS = {
    "a loop over a range": "x = [number for number in range(10**12) if number < 0]",
    "a huge power": "x = 7 ** 7 ** 12",
    "a huge tensor": "x = [torch.ones(2**20).sum() for number in range(10**9) if number > 10**8]",
    "a long einsum": "x = [torch.einsum('abcd,efgh->', q, q) for number in range(10**9)]",
    "a long product": "x = [q @ k.mT @ q @ k.mT @ q for number in range(10**9) if q.sum() > 1e9]",
}


def endless(name: str, side: str) -> Site:
    line = ENDLESS[name]
    if side == "new":
        return replace(site(line), path=f"{name} {side}")
    old = OLD.replace("return", f"{line}\n    return")
    return replace(site(), path=f"{name} {side}", fragment=Fragment(INPUTS, old, NEW.format("pass")))


def test_lines_that_do_not_end_end_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmore.upgrade.prove.prover.FILE_SECONDS", 0.9)
    with Prover() as prover:
        for name, side in (*((name, "old") for name in ENDLESS), ("a huge tensor", "new")):
            proof = prover.prove(endless(name, side))
            assert not proof.proved
            assert "longer than 0.3 s of processor time" in str(proof.why_not), (name, side)
            assert proof.seconds < 0.9
        assert all(prover.spent[f"{name} old"] > 0 for name in ENDLESS)


def test_the_proofs_of_one_file_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmore.upgrade.prove.prover.FILE_SECONDS", 1.2)
    with Prover() as prover:
        hang = endless("a huge power", "old")
        proofs = [prover.prove(replace(hang, path="a.py")) for _ in range(12)]
        monkeypatch.undo()  # too little for a whole proof
        other = prover.prove(replace(site(), path="b.py"))
        assert prover.spent["a.py"] < 1.2
    assert not any(proof.proved for proof in proofs)
    assert "of processor time" in str(proofs[0].why_not)
    assert "the proofs of this file have used up their 1.2 s" in str(proofs[-1].why_not)
    assert other.proved


def test_the_same_lines_are_proved_once() -> None:
    with Prover() as prover:
        first = prover.prove(replace(site(), path="a.py"))
        assert first.proved
        assert prover.prove(replace(site(), path="b.py")) is first
        assert not prover.prove(replace(site("q = q * 2"), path="b.py")).proved


def test_a_child_that_dies_is_told_and_replaced() -> None:
    with Prover() as prover:
        assert prover.prove(site()).proved
        assert prover.child is not None
        prover.child.kill()
        prover.child.wait()
        died = prover.prove(site("q = q + 0"))
        assert not died.proved
        assert "signal 9" in str(died.why_not)
        assert prover.prove(site()).proved


def test_what_the_allow_list_lacks_never_runs(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    proof = prove(site(f"open({str(trap)!r}, 'w')"))
    assert not proof.proved
    assert "open" in str(proof.why_not)
    assert not trap.exists()


def test_no_module_beside_the_user_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('the user\\'s own torch.py was imported')\n")
    monkeypatch.chdir(tmp_path)
    assert prove(site()).proved


def test_a_fragment_survives_the_way_to_the_child() -> None:
    inputs = (*INPUTS, Input("m", "self.m", "mask", None, "bool", "é"), Input("s", "s", "scale", ()))
    fragment = Fragment(inputs, OLD, NEW)
    assert fragment_from_json(fragment_to_json(fragment)) == fragment


def test_a_site_without_lines_is_not_proved() -> None:
    assert not prove(replace(site(), fragment=None)).proved
