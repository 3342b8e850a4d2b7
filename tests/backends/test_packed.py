"""Packed attention is attention of each segment by itself, whichever backend computes it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashmore.backends.manual import manual
from flashmore.backends.packed import PACKED_BACKENDS, Segments, packed_attention, to_places, to_tokens
from flashmore.errors import BackendUnavailable, ConfigError
from flashmore.measuring.accuracy import judge_all

ON_CPU = tuple(name for name in ("manual", "sdpa", "math", "flash") if name in PACKED_BACKENDS)
H, D = 2, 4
Results = dict[str, Tensor]


def results(backend: str, qkv: Tensor, segments: Segments, dtype: torch.dtype) -> Results:
    """The output and the three gradients, from (3, N, H, D) in float64."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in qkv]
    y = packed_attention(*leaves, segments, backend=backend)  # type: ignore[misc, arg-type]
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(y, leaves, cotangent.to(dtype))
    return dict(zip(("out", "dq", "dk", "dv"), (y.detach(), *gradients), strict=True))


def random_qkv(tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, tokens, H, D, generator=generator, dtype=torch.float64)


def by_hand(qkv: Tensor, lengths: list[int]) -> Tensor:
    """Each segment cut out and attended alone, without any of the packing's code."""
    parts = []
    for piece in torch.split(qkv, lengths, dim=1):
        q, k, v = piece.transpose(1, 2)[:, None]  # (3, t, H, D) -> 3 × (1, H, t, D)
        parts.append(manual(q, k, v, mask=None, causal=True, scale=None, dropout_p=0.0)[0].transpose(0, 1))
    return torch.cat(parts)


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@pytest.mark.parametrize("backend", ON_CPU)
@given(lengths=LENGTHS, more=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_every_backend_is_the_oracle_within_the_budget(
    backend: str, lengths: list[int], more: int, seed: int
) -> None:
    segments = Segments.of(torch.tensor(lengths), max(lengths) + more)
    qkv = random_qkv(sum(lengths), seed)
    right = results("segments", qkv, segments, torch.float64)
    torch.testing.assert_close(right["out"], by_hand(qkv, lengths))
    for dtype in (torch.float32, torch.float64):
        plain = results("segments", qkv, segments, dtype)
        found = judge_all(results(backend, qkv, segments, dtype), plain, right)
        assert all(judgement.good for judgement in found), (dtype, found)


@pytest.mark.parametrize("lengths", [[1], [9], [1, 1, 1], [5, 5, 5], [1, 9, 1]], ids=str)
@pytest.mark.parametrize("backend", ON_CPU)
def test_the_edges_one_row_one_token_all_full(backend: str, lengths: list[int]) -> None:
    segments = Segments.of(torch.tensor(lengths), max(lengths))
    qkv = random_qkv(sum(lengths))
    found = results(backend, qkv, segments, torch.float64)
    right = results("segments", qkv, segments, torch.float64)
    torch.testing.assert_close(found, right)


@given(lengths=LENGTHS, more=st.integers(0, 3))
def test_segments_lie_where_they_say(lengths: list[int], more: int) -> None:
    T = max(lengths) + more
    segments = Segments.of(torch.tensor(lengths), T)
    assert segments.rows == len(lengths)
    assert segments.cu_seqlens.dtype == torch.int32
    assert segments.cu_seqlens.diff().tolist() == lengths
    assert segments.positions.tolist() == [p for length in lengths for p in range(length)]
    assert segments.places.tolist() == [b * T + p for b, n in enumerate(lengths) for p in range(n)]
    x = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(to_tokens(to_places(x, segments), segments), x)
    assert torch.autograd.gradcheck(lambda x: to_tokens(to_places(x, segments).tanh(), segments), x)


def test_what_one_segment_holds_never_reaches_another() -> None:
    segments = Segments.of(torch.tensor([3, 4, 2]), 5)
    qkv = random_qkv(9)
    changed = qkv.clone()
    changed[:, 3:7] += 100
    for backend in (*ON_CPU, "segments"):
        before = packed_attention(*qkv, segments, backend=backend)  # type: ignore[misc, arg-type]
        after = packed_attention(*changed, segments, backend=backend)  # type: ignore[misc, arg-type]
        assert torch.equal(before[:3], after[:3]), backend
        assert torch.equal(before[7:], after[7:]), backend
        assert not torch.equal(before[3:7], after[3:7]), backend


def test_varlen_on_a_cpu_names_every_reason_and_what_works() -> None:
    segments = Segments.of(torch.tensor([2]), 2)
    q, k, v = torch.randn(3, 2, H, D)
    with pytest.raises(BackendUnavailable) as refused:
        packed_attention(q, k, v, segments, backend="varlen", dropout_p=0.1)
    assert len(refused.value.reasons) == 3
    assert set(refused.value.usable) == set(PACKED_BACKENDS) - {"varlen"}


def test_an_unknown_backend_is_refused() -> None:
    segments = Segments.of(torch.tensor([2]), 2)
    with pytest.raises(ConfigError, match="fast"):
        packed_attention(*torch.randn(3, 2, H, D), segments, backend="fast")  # type: ignore[misc, arg-type]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_varlen_on_cuda_is_the_oracle_within_the_budget(dtype: torch.dtype) -> None:
    lengths = [1, 16, 7, 9]
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, sum(lengths), H, 64, generator=generator, dtype=torch.float64).to("cuda", dtype)
    segments = Segments.of(torch.tensor(lengths, device="cuda"), 16)
    exact = qkv.double()
    right = packed_attention(*exact, segments, backend="segments")  # type: ignore[misc, arg-type]
    plain = packed_attention(*qkv, segments, backend="segments")  # type: ignore[misc, arg-type]
    found = packed_attention(*qkv, segments, backend="varlen")  # type: ignore[misc, arg-type]
    assert all(judgement.good for judgement in judge_all({"y": found}, {"y": plain}, {"y": right}))
