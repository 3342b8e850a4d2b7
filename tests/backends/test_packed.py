"""Packed attention is attention of each segment by itself, whichever backend computes it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashmore.backends.manual import manual
from flashmore.backends.packed import Segments, packed_attention, to_places, to_tokens
from flashmore.errors import ConfigError
from flashmore.measuring.accuracy import judge_all

ON_CPU = ("manual", "sdpa", "math", "flash")
H, D = 2, 4


def by_hand(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Each segment cut out and attended alone, without any of the packing's code."""
    parts = []
    for piece in torch.split(torch.stack((q, k, v)), lengths, dim=1):
        one = piece.transpose(1, 2)[:, None]  # (3, t, H, D) -> 3 × (1, H, t, D)
        parts.append(manual(*one, mask=None, causal=True, scale=None, dropout_p=0.0)[0].transpose(0, 1))
    return torch.cat(parts)


def results(
    backend: str | None, qkv: Tensor, lengths: list[int], dtype: torch.dtype, longest: int | None = None
) -> dict[str, Tensor]:
    """The output and the three gradients, from (3, N, H, D) in float64; by hand where no backend is named."""
    q, k, v = leaves = [x.detach().to(dtype).requires_grad_() for x in qkv]
    if backend is None:
        y = by_hand(q, k, v, lengths)
    else:
        segments = Segments.of(torch.tensor(lengths), longest or max(lengths))
        y = packed_attention(q, k, v, segments, backend=backend)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(y, leaves, cotangent.to(dtype))
    return dict(zip(("out", "dq", "dk", "dv"), (y.detach(), *gradients), strict=True))


def random_qkv(tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, tokens, H, D, generator=generator, dtype=torch.float64)


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@pytest.mark.parametrize("backend", ON_CPU)
@given(lengths=LENGTHS, more=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_every_backend_is_the_reference_within_the_budget(
    backend: str, lengths: list[int], more: int, seed: int
) -> None:
    qkv = random_qkv(sum(lengths), seed)
    right = results(None, qkv, lengths, torch.float64)
    for dtype in (torch.float32, torch.float64):
        plain = results(None, qkv, lengths, dtype)
        found = judge_all(results(backend, qkv, lengths, dtype, max(lengths) + more), plain, right)
        assert all(judgement.good for judgement in found), (dtype, found)


@pytest.mark.parametrize("lengths", [[1], [9], [1, 1, 1], [5, 5, 5], [1, 9, 1]], ids=str)
@pytest.mark.parametrize("backend", ON_CPU)
def test_the_edges_one_row_one_token_all_full(backend: str, lengths: list[int]) -> None:
    qkv = random_qkv(sum(lengths))
    found = results(backend, qkv, lengths, torch.float64)
    torch.testing.assert_close(found, results(None, qkv, lengths, torch.float64))


@given(lengths=LENGTHS, more=st.integers(0, 3))
def test_segments_lie_where_they_say(lengths: list[int], more: int) -> None:
    T = max(lengths) + more
    segments = Segments.of(torch.tensor(lengths), T)
    assert segments.rows == len(lengths)
    assert segments.real.view(segments.rows, T).sum(1).tolist() == lengths
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
    for backend in ON_CPU:
        before = packed_attention(*qkv, segments, backend=backend)  # type: ignore[misc, arg-type]
        after = packed_attention(*changed, segments, backend=backend)  # type: ignore[misc, arg-type]
        assert torch.equal(before[:3], after[:3]), backend
        assert torch.equal(before[7:], after[7:]), backend
        assert not torch.equal(before[3:7], after[3:7]), backend


def test_an_unknown_backend_is_refused() -> None:
    segments = Segments.of(torch.tensor([2]), 2)
    with pytest.raises(ConfigError, match="fast"):
        packed_attention(*torch.randn(3, 2, H, D), segments, backend="fast")  # type: ignore[misc, arg-type]
