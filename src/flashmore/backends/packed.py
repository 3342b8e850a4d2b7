"""Packed attention: the second contract, for concatenated segments without padding.

Shapes: N tokens in all segments, B segments, T places (the longest segment), H heads, D channels per head.

About half of a batch of names is padding. If the segments are concatenated instead, linear layers, layer
norms and the loss skip it; only attention needs the segment boundaries, and for it alone the segments are
padded to rows of T places.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashmore.backends.contract import attention


@dataclass(frozen=True)
class Segments:
    """The position of each of the N tokens in its segment, and its place in rows of T places."""

    longest: int
    """T, at least the length of every segment."""
    positions: Tensor
    """(N,) int64."""
    places: Tensor
    """(N,) int64: b·T + position."""
    tokens: Tensor
    """(B·T,) int64: the token at each place; token 0 for padding."""
    real: Tensor
    """(B·T,) bool: False for padding."""

    @classmethod
    def of(cls, lengths: Tensor, longest: int) -> "Segments":
        """Build the layout from lengths, (B,) int64, each from 1 to `longest`, on any device."""
        real = torch.arange(longest, device=lengths.device) < lengths[:, None]  # (B, T)
        places = real.flatten().nonzero()[:, 0]  # (N,)
        tokens = torch.zeros(real.numel(), dtype=torch.int64, device=lengths.device)
        tokens[places] = torch.arange(len(places), device=lengths.device)
        return cls(longest, places % longest, places, tokens, real.flatten())

    @property
    def rows(self) -> int:
        """B."""
        return len(self.real) // self.longest


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, backend: str, dropout_p: float = 0.0
) -> Tensor:
    """Causal attention inside each segment, scaled by 1/√D.

    Args:
        q: queries, (N, H, D), floating point; k and v likewise.
        backend, dropout_p: as `flashmore.backends.contract.attention` takes them; it raises the same errors.

    Returns:
        (N, H, D), of q's dtype.
    """
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
