"""The error budget lets rounding pass and nothing else."""

import pytest
import torch

from flashmore.measuring.accuracy import judge, judge_all

REFERENCE = torch.linspace(-2, 2, 41, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_alone_is_good(dtype: torch.dtype) -> None:
    verdict = judge("out", REFERENCE.to(dtype), REFERENCE.to(dtype), REFERENCE)
    assert verdict.good
    assert 0 < verdict.error < verdict.budget


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_budget_is_twice_the_plain_error_and_sixteen_roundings(dtype: torch.dtype) -> None:
    plain = (REFERENCE + 0.01).to(dtype)
    budget = 2 * (plain.double() - REFERENCE).abs().max().item() + 16 * torch.finfo(dtype).eps * 2
    assert judge("out", plain, plain, REFERENCE).budget == pytest.approx(budget)
    assert judge("out", REFERENCE + 0.99 * budget, plain, REFERENCE).good
    assert not judge("out", REFERENCE + 1.01 * budget, plain, REFERENCE).good


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_never_good(bad: float) -> None:
    answer = REFERENCE.float()
    answer[3] = bad
    assert not judge("out", answer, REFERENCE.float(), REFERENCE).good


def test_a_reference_that_is_not_finite_compares_nothing() -> None:
    reference = REFERENCE.clone()
    reference[0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        judge("out", REFERENCE.float(), REFERENCE.float(), reference)


def test_a_broadcast_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        judge("out", REFERENCE[:1].float(), REFERENCE.float(), REFERENCE)


@pytest.mark.parametrize(("dtype", "roundings"), [(torch.float32, 68), (torch.bfloat16, 4)])
def test_a_gradient_that_cancels_is_measured_in_the_largest_tensor(
    dtype: torch.dtype, roundings: int
) -> None:
    reference = {
        "out": torch.full((4,), 3.0, dtype=torch.float64),
        "dq": torch.zeros(4, dtype=torch.float64),
    }
    plain = {name: tensor.to(dtype) for name, tensor in reference.items()}
    allowed = roundings * torch.finfo(dtype).eps * 3
    for share, good in ((0.98, True), (1.02, False)):
        verdicts = judge_all(plain | {"dq": plain["dq"] + share * allowed}, plain, reference)
        assert [verdict.good for verdict in verdicts] == [True, good]


def test_a_tensor_of_its_own_size_gets_no_more_because_of_a_larger_one() -> None:
    reference = {"out": REFERENCE * 3.9, "dq": REFERENCE}
    plain = {name: tensor.bfloat16() for name, tensor in reference.items()}
    alone = judge("dq", plain["dq"], plain["dq"], reference["dq"])
    assert judge_all(plain, plain, reference)[1].budget == alone.budget


def test_a_sum_is_measured_in_its_terms_and_the_root_of_their_number() -> None:
    reference, plain = torch.zeros(1, dtype=torch.float64), torch.zeros(1)
    allowed = 4 * torch.finfo(torch.float32).eps * 3 * 10_000**0.5
    for share, good in ((0.98, True), (1.02, False)):
        answer = torch.tensor([share * allowed])
        assert judge("dt", answer, plain, reference, summed=3 * 10_000**0.5).good is good
