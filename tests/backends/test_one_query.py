"""One query against the reference: attention over the same keys, all queries at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashmore.backends.contract import attention
from flashmore.backends.one_query import attend_last


@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_it_is_the_last_row_of_causal_attention(B: int, T: int, H: int, D: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, B, H, T, D, dtype=torch.float64, generator=generator)
    expected = attention(q, k, v, backend="manual", causal=True)[:, :, -1]
    last = attend_last(q[:, :, -1], k.permute(2, 0, 1, 3), v.permute(2, 0, 1, 3))
    torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1e3, 1e18])
def test_large_scores_do_not_overflow(size: float) -> None:
    q = torch.tensor([[[size]]])
    k, v = torch.tensor([1.0, -1.0, 2.0]).view(3, 1, 1, 1), torch.tensor([5.0, 6.0, 7.0]).view(3, 1, 1, 1)
    assert attend_last(q, k, v).item() == 7.0
