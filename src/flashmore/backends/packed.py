"""Packed attention: the second contract, for concatenated segments without padding.

Shapes: N tokens in all segments, B segments, T places (the longest segment), H heads, D channels per head.

About half of a batch of names is padding. If the segments are concatenated instead, linear layers, layer
norms and the loss skip it; only attention needs the segment boundaries. On CUDA PyTorch supports this with
`varlen_attn` (https://docs.pytorch.org/docs/stable/nn.attention.varlen.html); elsewhere the segments are
padded to rows of T places for attention only.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashmore.backends.contract import attention
from flashmore.backends.manual import manual
from flashmore.errors import BackendUnavailable
from flashmore.specs import backends

PACKED_BACKENDS: tuple[str, ...] = ("segments", *backends(), "varlen")
"""`segments` loops over segments and is the reference; `varlen` is for CUDA; the others use padded rows."""


@dataclass(frozen=True)
class Segments:
    """The position of each segment in the N tokens, and of its tokens in rows of T places."""

    cu_seqlens: Tensor
    """(B + 1,) int32: segment b is tokens cu_seqlens[b] … cu_seqlens[b + 1] - 1."""
    longest: int
    """T, at least the length of every segment."""
    positions: Tensor
    """(N,) int64: the position of each token in its segment."""
    places: Tensor
    """(N,) int64: b·T + position, the place of each token."""
    tokens: Tensor
    """(B·T,) int64: the token at each place; token 0 for padding."""
    real: Tensor
    """(B·T,) bool: False for padding."""

    @classmethod
    def of(cls, lengths: Tensor, longest: int) -> "Segments":
        """Build the layout from segment lengths.

        Args:
            lengths: (B,) int64, each from 1 to `longest`, on any device.
            longest: T.
        """
        real = torch.arange(longest, device=lengths.device) < lengths[:, None]  # (B, T)
        places = real.flatten().nonzero()[:, 0]  # (N,)
        tokens = torch.zeros(real.numel(), dtype=torch.int64, device=lengths.device)
        tokens[places] = torch.arange(len(places), device=lengths.device)
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return cls(cu_seqlens, longest, places % longest, places, tokens, real.flatten())

    @property
    def rows(self) -> int:
        """B."""
        return len(self.cu_seqlens) - 1


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, backend: str, dropout_p: float = 0.0
) -> Tensor:
    """Causal attention inside each segment, scaled by 1/√D.

    Args:
        q: queries, (N, H, D), floating point; k and v likewise.
        segments: their layout.
        backend: a name in `PACKED_BACKENDS`.
        dropout_p: probability of dropping a weight; it applies whenever it is above 0.

    Returns:
        (N, H, D), of q's dtype.

    Raises:
        ConfigError: an unknown backend.
        BackendUnavailable: the backend cannot run for this device, dtype and shape.
    """
    if backend == "segments":
        return _one_by_one(q, k, v, segments, dropout_p)
    if backend == "varlen":
        return _varlen(q, k, v, segments, dropout_p)
    H, D = q.shape[1:]
    qkv = torch.stack((q, k, v), dim=1).flatten(1)  # 3 × (N, H, D) -> (N, 3·H·D)
    rows = to_places(qkv, segments).view(segments.rows, segments.longest, 3, H, D)  # (B, T, 3, H, D)
    y = attention(*rows.permute(2, 0, 3, 1, 4), backend=backend, causal=True, dropout_p=dropout_p)
    return to_tokens(y.transpose(1, 2).flatten(2).flatten(0, 1), segments).view(-1, H, D)  # (B, H, T, D) ->


def to_places(x: Tensor, segments: Segments) -> Tensor:
    """Pad tokens (N, C) to rows of places (B·T, C); padding repeats token 0.

    With causal attention no real query sees padding, which is at the end of each row. So the gradients of
    padding are zero and can be omitted.
    """
    placed: Tensor = _Gather.apply(x, segments.tokens, segments.places, None)  # type: ignore[no-untyped-call]
    return placed


def to_tokens(x: Tensor, segments: Segments) -> Tensor:
    """Gather the tokens (N, C) from their places (B·T, C); the gradients of padding are zero."""
    where = (segments.places, segments.tokens, segments.real)
    taken: Tensor = _Gather.apply(x, *where)  # type: ignore[no-untyped-call]
    return taken


class _Gather(torch.autograd.Function):
    """A gather whose backward is also a gather: autograd's would be a slow scatter-add."""

    @staticmethod
    def forward(x: Tensor, there: Tensor, *_: Tensor | None) -> Tensor:
        return x[there]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
        x, _there, back, real = inputs
        ctx.save_for_backward(back, real)
        ctx.dtype = x.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        back, real = ctx.saved_tensors
        gathered = grad[back] if real is None else torch.where(real[:, None], grad[back], 0)
        return gathered.to(ctx.dtype), None, None, None


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, segments: Segments, dropout_p: float) -> Tensor:
    """Manual attention for each segment in turn: the reference."""
    parts = []
    for start, end in itertools.pairwise(segments.cu_seqlens.tolist()):
        one = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))  # (t, H, D) -> (1, H, t, D)
        y = manual(*one, mask=None, causal=True, scale=None, dropout_p=dropout_p)
        parts.append(y[0].transpose(0, 1))  # (1, H, t, D) -> (t, H, D)
    return torch.cat(parts)


def _varlen(q: Tensor, k: Tensor, v: Tensor, segments: Segments, dropout_p: float) -> Tensor:
    others = tuple(name for name in PACKED_BACKENDS if name != "varlen")
    reasons = []
    if q.device.type != "cuda":
        reasons.append(f"varlen_attn runs on CUDA, and these tensors are on {q.device.type}")
    if q.dtype not in (torch.float16, torch.bfloat16):
        reasons.append(f"varlen_attn takes float16 and bfloat16, and these tensors are {q.dtype}")
    if dropout_p:
        reasons.append("varlen_attn has no dropout on the weights")
    if reasons:
        raise BackendUnavailable("varlen", tuple(reasons), others)
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = segments.cu_seqlens, segments.longest
    # Causal: a window of any number of keys back, and none ahead.
    y = varlen_attn(q, k, v, ends, ends, longest, longest, window_size=(-1, 0))
    assert isinstance(y, Tensor)  # without return_aux
    return y
