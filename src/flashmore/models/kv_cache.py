"""Attention of the last position of several sequences to keys and values that are kept, without gradients.

Shape letters: B batch, T positions, C channels, H heads of D channels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmore.backends.manual import attend_last

Attend = Callable[[Tensor], Tensor]
"""Attention of a position's queries, keys and values, (B, 3C), to all positions up to it, (B, C)."""


class InOrder:
    """Attention of sequences whose keys and values are in order.

    Args:
        kept: (T, 2, B, C), T the context, to which the keys and values of each new position are added.
        n_head: H.
    """

    def __init__(self, kept: Tensor, n_head: int) -> None:
        context, _, B, C = kept.shape
        by_head = kept.view(context, 2, B, n_head, -1).permute(1, 2, 3, 0, 4)  # (2, B, H, T, D)
        self._k, self._v = by_head.unbind()
        self._pairs = kept.transpose(1, 2).unbind()  # T × (B, 2, C)
        self._q, self._pair, self._channels = (B, n_head, 1, by_head.size(4)), (B, 2, C), C

    def __call__(self, qkv: Tensor, length: int) -> Tensor:
        """Map (B, 3C) of the last of `length` positions to (B, C)."""
        q, new = qkv[:, : self._channels], qkv[:, self._channels :]
        self._pairs[length - 1].copy_(new.view(self._pair))
        k, v = self._k[:, :, :length], self._v[:, :, :length]
        return F.scaled_dot_product_attention(q.view(self._q), k, v).reshape(q.shape)


def attend_anywhere(qkv: Tensor, kept: Tensor, places: Tensor, n_head: int) -> Tensor:
    """Attention of sequences whose keys and values are anywhere.

    Args:
        qkv: (B, 3C) of the last position.
        kept: (N, C), of which the last 2B rows become the keys and values of the last position.
        places: (2, T, B) int64: the rows of the keys and of the values of each position of each sequence.
        n_head: H.

    Returns:
        (B, C).
    """
    B = len(qkv)
    q, k, v = qkv.chunk(3, dim=1)  # 3 × (B, C)
    torch.cat((k, v), out=kept[len(kept) - 2 * B :])
    return attend_last(q.view(B, n_head, -1), kept, places).flatten(1)
