"""Every backend that runs here is as right as its precision allows, forward and backward."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmore.backends.contract import attention, attention_accuracy, describe_call
from flashmore.backends.manual import attend_last
from flashmore.errors import BackendUnavailable, ConfigError
from flashmore.rules import AttentionCall
from flashmore.specs import backend_spec, backends, usable

HERE = usable(AttentionCall((1, 1, 2, 8), (1, 1, 2, 8), (1, 1, 2, 8)))
"""The backends that every CPU has."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def qkv(
    B: int, H: int, T: int, S: int, D: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, H, T, D), (B, H, S, D), (B, H, S, D))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("backend", HERE)
@given(
    B=st.integers(1, 3),
    H=st.integers(1, 4),
    T=st.integers(1, 33),
    D=st.sampled_from((1, 2, 8, 16, 20, 64)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from((None, 1.0, 0.3)),
)
@settings(max_examples=40, deadline=None)
def test_causal_output_and_gradients_are_within_the_budget(
    backend: str, B: int, H: int, T: int, D: int, dtype: torch.dtype, seed: int, scale: float | None
) -> None:
    verdicts = attention_accuracy(backend, *qkv(B, H, T, T, D, dtype, seed), causal=True, scale=scale)
    assert [verdict.name for verdict in verdicts] == ["out", "dq", "dk", "dv"]
    assert all(verdict.good for verdict in verdicts), verdicts


@pytest.mark.parametrize("backend", HERE)
@given(
    T=st.integers(1, 20),
    S=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    boolean=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_masked_output_and_gradients_are_within_the_budget(
    backend: str, T: int, S: int, dtype: torch.dtype, boolean: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 1, T, S, generator=generator) < 0.7
    mask[..., 0] = True  # a row without any key has no answer to compare
    if not boolean:
        mask = torch.where(mask, torch.randn(2, 1, T, S, generator=generator), -math.inf).to(dtype)
    verdicts = attention_accuracy(backend, *qkv(2, 3, T, S, 8, dtype, seed), mask=mask)
    assert all(verdict.good for verdict in verdicts), verdicts


@pytest.mark.parametrize("backend", HERE)
@given(
    groups=st.integers(1, 3),
    H_kv=st.integers(1, 3),
    T=st.integers(1, 20),
    S=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    gradients=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_grouped_heads_are_those_that_repeated_ones_would_give(
    backend: str, groups: int, H_kv: int, T: int, S: int, dtype: torch.dtype, gradients: bool
) -> None:
    q, _, _ = qkv(2, groups * H_kv, T, S, 8, dtype)
    _, k, v = qkv(2, H_kv, T, S, 8, dtype)
    part = (1, groups)
    verdicts = attention_accuracy(backend, q, k, v, gradients=gradients, part=part)
    assert [verdict.name for verdict in verdicts] == ["out", "dq", "dk", "dv"][: 4 if gradients else 1]
    assert all(verdict.good for verdict in verdicts), verdicts
    repeated = (tensor.repeat_interleave(groups, 1) for tensor in (k, v))
    wanted = attention(q, *repeated, backend="manual")
    torch.testing.assert_close(attention(q, k, v, backend="manual"), wanted)


@pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6), (2, 3, 5, 6), (2, 1, 1, 6), (1, 3, 1, 6)], ids=str)
def test_a_part_is_checked_with_its_part_of_the_mask(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    mask = torch.randn(shape, generator=generator)
    q, k, v = (tensor.requires_grad_() for tensor in qkv(2, 3, 5, 6, 8))
    for backend in usable(describe_call(q, k, v, mask=mask)):
        judged = attention_accuracy(backend, q, k, v, mask=mask, part=(1, 2))
        assert all(verdict.good for verdict in judged), (backend, judged)


def test_manual_is_the_textbook_sum() -> None:
    q, k, v = (t.double() for t in qkv(1, 1, 3, 3, 2))
    out = attention(q, k, v, backend="manual", causal=True)
    for t in range(3):
        scores = [sum(q[0, 0, t, d] * k[0, 0, s, d] for d in range(2)) / math.sqrt(2) for s in range(t + 1)]
        total = sum(math.exp(score) for score in scores)
        for d in range(2):
            wanted = sum(math.exp(scores[s]) / total * v[0, 0, s, d] for s in range(t + 1))
            assert float(out[0, 0, t, d]) == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("backend", HERE)
def test_the_future_changes_nothing(backend: str) -> None:
    q, k, v = qkv(2, 2, 12, 12, 8)
    before = attention(q, k, v, backend=backend, causal=True)
    k[:, :, 7:] += 100
    v[:, :, 7:] -= 100
    after = attention(q, k, v, backend=backend, causal=True)
    assert torch.equal(before[:, :, :7], after[:, :, :7])
    assert not torch.allclose(before[:, :, 7:], after[:, :, 7:])


def test_causal_is_aligned_top_left() -> None:
    q, k, v = qkv(1, 1, 2, 5, 4)
    for backend in HERE:
        out = attention(q, k, v, backend=backend, causal=True)
        assert torch.allclose(out[:, :, 0], v[:, :, 0]), backend


def test_a_query_without_keys_is_nan_by_hand_and_zero_when_fused() -> None:
    q, k, v = qkv(1, 1, 2, 2, 4)
    mask = torch.tensor([[False, False], [True, True]])
    assert attention(q, k, v, backend="manual", mask=mask)[0, 0, 0].isnan().all()
    assert (attention(q, k, v, backend="flash", mask=mask)[0, 0, 0] == 0).all()


@pytest.mark.parametrize("backend", ["manual", "sdpa", "math"])
def test_dropout_drops_the_share_that_it_says(backend: str) -> None:
    torch.manual_seed(0)
    q, k, _ = qkv(8, 8, 32, 32, 8)
    identity = torch.eye(32).expand(8, 8, 32, 32)  # the output is then the matrix of weights itself
    weights = attention(q, k, identity, backend=backend, dropout_p=0.25)
    assert (weights == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert weights.sum(-1).mean().item() == pytest.approx(1, abs=0.01)


def test_an_unavailable_backend_tells_every_reason_and_what_would_work() -> None:
    q, k, v = qkv(1, 1, 4, 4, 8)
    mask = torch.zeros(4, 4, requires_grad=True)
    with pytest.raises(BackendUnavailable) as caught:
        attention(q, k, v, backend="flash", mask=mask, dropout_p=0.5)
    assert len(caught.value.reasons) == 2
    assert "0.5" in str(caught.value)
    assert "gradient" in str(caught.value)
    assert caught.value.usable == ("manual", "sdpa", "math")
    assert all(
        attention(q, k, v, backend=name, mask=mask, dropout_p=0.5) is not None for name in caught.value.usable
    )


@pytest.mark.parametrize("backend", ["efficient", "cudnn"])
def test_kernels_that_no_cpu_has_are_refused_with_the_ones_that_run(backend: str) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in qkv(1, 1, 4, 4, 8))
    with pytest.raises(BackendUnavailable) as caught:
        attention(q, k, v, backend=backend, causal=True)
    assert caught.value.usable == HERE


@pytest.mark.parametrize(
    ("shapes", "keywords"),
    [
        (((1, 1, 4, 8), (1, 1, 4, 8), (1, 1, 5, 8)), {}),
        (((1, 1, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)), {}),
        (((1, 4, 8), (1, 4, 8), (1, 4, 8)), {}),
        (((1, 1, 0, 8), (1, 1, 4, 8), (1, 1, 4, 8)), {}),
        (((1, 1, 4, 8), (1, 1, 4, 6), (1, 1, 4, 6)), {}),
        (((1, 1, 4, 8), (1, 1, 4, 8), (1, 1, 4, 8)), {"causal": True, "mask": torch.ones(4, 4)}),
        (((1, 1, 4, 8), (1, 1, 4, 8), (1, 1, 4, 8)), {"backend": "falsh"}),
    ],
)
def test_calls_outside_the_contract_are_refused(
    shapes: tuple[tuple[int, ...], ...], keywords: dict[str, object]
) -> None:
    q, k, v = (torch.randn(shape) for shape in shapes)
    with pytest.raises(ConfigError):
        attention(q, k, v, **({"backend": "manual"} | keywords))  # type: ignore[arg-type]


def test_mixed_dtypes_are_refused() -> None:
    q, k, v = qkv(1, 1, 4, 4, 8)
    with pytest.raises(ConfigError, match="of the same dtype"):
        attention(q, k.double(), v, backend="manual")


@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_one_query_gives_the_last_row_of_causal_attention(B: int, T: int, H: int, D: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, B, H, T, D, dtype=torch.float64, generator=generator)
    expected = attention(q, k, v, backend="manual", causal=True)[:, :, -1]
    kept = torch.cat([part.permute(2, 0, 1, 3).reshape(T * B, H * D) for part in (k, v)])
    last = attend_last(q[:, :, -1], kept, torch.arange(2 * T * B).view(2, T, B))
    torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1e3, 1e18])
def test_large_scores_of_one_query_do_not_overflow(size: float) -> None:
    q = torch.tensor([[[size]]])
    kept = torch.tensor([[1.0], [-1.0], [2.0], [5.0], [6.0], [7.0]])
    assert attend_last(q, kept, torch.arange(6).view(2, 3, 1)).item() == 7.0


@pytest.mark.cuda
@pytest.mark.parametrize("backend", tuple(backends()))
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_backends_are_within_the_budget_or_refused_with_a_reason(
    backend: str, dtype: torch.dtype
) -> None:
    q, k, v = (t.cuda() for t in qkv(4, 4, 128, 128, 64, dtype))
    try:
        verdicts = attention_accuracy(backend, q, k, v, causal=True)
    except BackendUnavailable:
        assert backend_spec(backend).reasons_against(describe_call(q, k, v, causal=True))
    else:
        assert all(verdict.good for verdict in verdicts), verdicts
