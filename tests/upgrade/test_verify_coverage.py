"""Flags and optional inputs multiply the cases: which of them are tried, and what the test says of it."""

from collections.abc import Mapping
from itertools import combinations

from flashmore.upgrade.site import Fragment, Input, Site
from flashmore.upgrade.verify import coverage
from flashmore.upgrade.verify.family import Choice, Choices, questions_of
from flashmore.upgrade.verify.verifier import Verifier

Q, K, V = (
    Input(name, name, "tensor", ("B", "H", length, "D")) for name, length in zip("qkv", "LSS", strict=True)
)
BIASES = tuple(Input(f"b{n}", f"b{n}", "bias", None, "float", "optional") for n in range(5))


def fits(choices: Choices) -> bool:
    """Whether a bias can be added to scores."""
    return all(each is None or (each[-1] == "S" and len(each) != 3) for each in choices.values())  # type: ignore[index,arg-type]


def pairs(choices: Mapping[str, Choice]) -> set[tuple[tuple[str, Choice], ...]]:
    return set(combinations(choices.items(), 2))


def test_few_combinations_are_all_tried() -> None:
    questions = questions_of((Q, K, V, *BIASES[:2]))
    found = coverage.accepted(questions, lambda _: True)
    assert len(found.combinations) == found.of == 100
    design = coverage.whole((Q, K, V), found.combinations[:2])
    assert list(coverage.said(coverage.Accepted(found.combinations[:2], 2), design, design)) == []


def test_of_many_combinations_each_answer_is_tried_beside_each_other() -> None:
    questions = questions_of((Q, K, V, *BIASES))
    found = coverage.accepted(questions, fits)
    assert all(map(fits, found.combinations))
    tried = set().union(*map(pairs, found.combinations))
    possible = {name: {each[name] for each in found.combinations} for name in questions}
    assert all(len(answers) > 3 for answers in possible.values())
    every = [
        ((one, a), (two, b))
        for one, two in combinations(questions, 2)
        for a in possible[one]
        for b in possible[two]
    ]
    assert sum(pair in tried for pair in every) > 0.7 * len(every)
    assert len(found.combinations) < 150 < found.of


def test_what_is_thinned_keeps_each_case_with_each_answer() -> None:
    inputs = (Q, K, V, *BIASES)
    found = coverage.accepted(questions_of(inputs), fits)
    whole = coverage.whole(inputs, found.combinations)
    thin = coverage.thinned(whole)
    assert coverage.size(thin) < coverage.size(whole) / 5
    assert all(cases for _, cases in thin)

    def met(design: coverage.Design) -> set[tuple[str, tuple[str, Choice]]]:
        return {
            (str(case.name(has_mask=True)).partition(", b0:")[0], answer)
            for choices, cases in design
            for case in cases
            for answer in choices.items()
        }

    assert met(thin) == met(whole)
    assert any("cases were tried" in line for line in coverage.said(found, thin, whole))


def test_a_rewrite_that_is_wrong_for_one_combination_of_many_is_refuted(verifier: Verifier) -> None:
    flags = tuple(Input(f"c{n}", f"c{n}", "flag", None) for n in range(8))
    names = ", ".join(["q", "k", "v", *(flag.name for flag in flags)])
    lines = "".join(f"    if {flag.name}:\n        q = q * 0.{n + 1}\n" for n, flag in enumerate(flags))
    old = f"def old({names}):\n{lines}    return (q @ k.mT).softmax(-1) @ v\n"
    fused = "    return F.scaled_dot_product_attention(q, k, v, scale=1.0)\n"
    new = f"def new({names}):\n{lines}{fused}"
    wrong = f"def new({names}):\n{lines}    if c0 and not c1 and c6 and c7:\n        q = q * 2\n{fused}"
    right, refuted = (
        verifier.verify(
            Site(path, 1, 3, "f", "rewritten", "", fragment=Fragment((Q, K, V, *flags), old, text))
        )
        for path, text in (("right of many.py", new), ("wrong for one.py", wrong))
    )
    assert right.passed, right.why_not
    assert any("cases were tried" in line for line in right.assumptions)
    assert refuted.refuted
