"""Tests run in a process of their own: crashes, hangs, no memory are named, and the others go on."""

from dataclasses import replace
from pathlib import Path

import pytest

from flashmore.upgrade.site import Fragment, Input, Site
from flashmore.upgrade.verify.verifier import Verifier

INPUTS = tuple(Input(n, n, "tensor", ("B", "H", m, "D")) for n, m in zip("qkv", "LSS", strict=True))
OLD = "def old(q, k, v):\n    return (q @ k.mT * 0.2).softmax(-1) @ v\n"
NEW = "def new(q, k, v):\n    {}\n    return F.scaled_dot_product_attention(q, k, v, scale=0.2)\n"


def site(line: str = "pass") -> Site:
    fragment = Fragment(INPUTS, OLD, NEW.format(line))
    return Site("model.py", 1, 3, "f", "rewritten", "", fragment=fragment, assumptions=("it rains",))


def test_one_that_fails_leaves_the_others_tested() -> None:
    lines = (
        "pass",
        "x = [q + number for number in range(10**9)]",  # hangs, and eats memory meanwhile
        "x = torch.zeros(10**12)",  # no memory
        "x = list(range(10**9))",  # none of Python's either
        "pass",
    )
    with Verifier(seconds=5, memory_bytes=2**28) as verifier:
        verifications = [verifier.verify(site(line)) for line in lines]
    assert [verification.passed for verification in verifications] == [True, False, False, False, True]
    assert all(verification.why_not for verification in verifications[1:4])
    assert all("it rains" in verification.assumptions for verification in verifications)


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


def test_lines_that_do_not_end_end_the_test(monkeypatch: pytest.MonkeyPatch, verifier: Verifier) -> None:
    monkeypatch.setattr("flashmore.upgrade.verify.verifier.FILE_SECONDS", 0.9)
    verifier.spent.clear()
    for name, side in (*((name, "old") for name in ENDLESS), ("a huge tensor", "new")):
        verification = verifier.verify(endless(name, side))
        assert not verification.passed
        assert "longer than 0.3 s of processor time" in str(verification.why_not), (name, side)
        assert verification.seconds < 0.9
    assert all(verifier.spent[f"{name} old"] > 0 for name in ENDLESS)


def test_the_tests_of_one_file_have_a_limit_together(
    monkeypatch: pytest.MonkeyPatch, verifier: Verifier
) -> None:
    monkeypatch.setattr("flashmore.upgrade.verify.verifier.FILE_SECONDS", 1.2)
    verifier.spent.clear()
    hang = endless("a huge power", "old")
    verifications = [verifier.verify(replace(hang, path="a.py")) for _ in range(12)]
    monkeypatch.undo()  # too little for a whole test
    other = verifier.verify(replace(site(), path="b.py"))
    assert verifier.spent["a.py"] < 1.2
    assert not any(verification.passed for verification in verifications)
    assert "of processor time" in str(verifications[0].why_not)
    assert "the tests of this file have used up their 1.2 s" in str(verifications[-1].why_not)
    assert other.passed


def test_the_same_lines_are_tested_once(verifier: Verifier) -> None:
    verifier.known.clear()
    first = verifier.verify(replace(site(), path="a.py"))
    assert first.passed
    assert verifier.verify(replace(site(), path="b.py")) is first
    assert not verifier.verify(replace(site("q = q * 2"), path="b.py")).passed


def test_a_child_that_dies_is_told_and_replaced() -> None:
    with Verifier() as verifier:
        assert verifier.verify(site()).passed
        assert verifier.child is not None
        verifier.child.kill()
        verifier.child.wait()
        died = verifier.verify(site("q = q + 0"))
        assert not died.passed
        assert "signal 9" in str(died.why_not)
        assert verifier.verify(site()).passed


def test_what_the_allow_list_lacks_never_runs(tmp_path: Path, verifier: Verifier) -> None:
    trap = tmp_path / "trap"
    verification = verifier.verify(site(f"open({str(trap)!r}, 'w')"))
    assert not verification.passed
    assert "open" in str(verification.why_not)
    assert not trap.exists()


def test_a_site_without_lines_is_not_tested(verifier: Verifier) -> None:
    assert not verifier.verify(replace(site(), fragment=None)).passed
