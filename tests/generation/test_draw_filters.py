import math

import hypothesis.extra.numpy as npst
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashmore.generation.draw import apply_temperature, keep_top_k, keep_top_p

ROWS = npst.arrays(
    "float64", npst.array_shapes(min_dims=1, max_dims=3, max_side=12), elements=st.floats(-20, 20, width=32)
).map(torch.from_numpy)
WHOLE_NUMBERS = npst.arrays("float64", st.integers(1, 12), elements=st.integers(-2, 2)).map(torch.from_numpy)
LOGITS = ROWS | WHOLE_NUMBERS  # the latter have ties


def rows(logits: Tensor) -> list[list[float]]:
    return [[float(value) for value in row] for row in logits.reshape(-1, logits.size(-1))]


def check_kept(logits: Tensor, filtered: Tensor) -> list[tuple[list[float], list[bool]]]:
    """What every filter must do: keep values as they are, give −∞ to the rest, and prefer the likelier."""
    assert filtered.shape == logits.shape
    kept = filtered != -torch.inf
    assert torch.equal(filtered[kept], logits[kept])
    assert torch.allclose(filtered.softmax(-1).sum(-1), torch.ones(logits.shape[:-1], dtype=logits.dtype))
    pairs = list(zip(rows(logits), [[bool(value) for value in row] for row in rows(kept)], strict=True))
    for row, marks in pairs:
        lowest = min(value for value, mark in zip(row, marks, strict=True) if mark)
        assert all(value <= lowest for value, mark in zip(row, marks, strict=True) if not mark)
    return pairs


@settings(deadline=None)
@given(logits=LOGITS, k=st.integers(1, 15))
def test_top_k_keeps_exactly_k_unless_equals_stand_at_the_border(logits: Tensor, k: int) -> None:
    for row, marks in check_kept(logits, keep_top_k(logits, k)):
        border = sorted(row, reverse=True)[min(k, len(row)) - 1]
        assert sum(marks) == sum(value >= border for value in row)
        if len(set(row)) == len(row):
            assert sum(marks) == min(k, len(row))


@settings(deadline=None)
@given(logits=LOGITS, p=st.floats(0.001, 0.999))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: Tensor, p: float) -> None:
    for row, marks in check_kept(logits, keep_top_p(logits, p)):
        largest = max(row)
        weights = [math.exp(value - largest) for value in row]
        masses = [weight / math.fsum(weights) for weight, mark in zip(weights, marks, strict=True) if mark]
        assert math.fsum(masses) >= p - 1e-12
        assert math.fsum(masses) - min(masses) < p + 1e-12


@settings(deadline=None)
@given(logits=LOGITS)
def test_top_p_of_one_keeps_all(logits: Tensor) -> None:
    assert torch.equal(keep_top_p(logits, 1.0), logits)


def test_top_p_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64).log()
    kept = [[0, 1, 0, 0], [1, 1, 0, 0]]
    assert (keep_top_p(logits, 0.4) > -torch.inf).int().tolist() == kept
    assert (keep_top_p(logits, 0.7) > -torch.inf).int().tolist() == [[0, 1, 0, 1], [1, 1, 1, 0]]


def test_top_p_never_keeps_what_another_filter_left_out() -> None:
    logits = keep_top_k(torch.tensor([1.0, 3.0, 2.0]), 2)
    assert keep_top_p(logits, 0.999999).tolist() == [-torch.inf, 3.0, 2.0]


@settings(deadline=None)
@given(logits=LOGITS, temperature=st.floats(0.05, 20))
def test_temperature_raises_probabilities_to_its_inverse(logits: Tensor, temperature: float) -> None:
    expected = logits.softmax(-1) ** (1 / temperature)
    expected /= expected.sum(-1, keepdim=True)
    assert torch.allclose(apply_temperature(logits, temperature).softmax(-1), expected, atol=1e-9)


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-300, 1e-30, 1e30, 1e308])
def test_extreme_temperatures_give_the_limits(temperature: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [900.0, 900.0, -900.0]], dtype=torch.float64)
    cold = [[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]
    expected = torch.tensor(cold if temperature < 1 else [[1 / 3] * 3] * 2, dtype=torch.float64)
    assert torch.allclose(apply_temperature(logits, temperature).softmax(-1), expected, atol=1e-9)


@settings(deadline=None)
@given(logits=LOGITS)
def test_no_filter_writes_into_its_input(logits: Tensor) -> None:
    before = logits.clone()
    apply_temperature(logits, 0.5)
    keep_top_k(logits, 1)
    keep_top_p(logits, 0.5)
    assert torch.equal(logits, before)
