"""Attention of the last position of several sequences to keys and values that are kept, without gradients.

Shape letters: B batch, T positions, C channels, H heads of D channels, L blocks.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmore.backends.manual import attend_last

Attend = Callable[[Tensor], Tensor]
"""Attention of a position's queries, keys and values, (B, 3C), to all positions up to it, (B, C)."""


class InOrder:
    """Keys and values of sequences in the order of their positions.

    Args:
        kept: (L, T, 2, B, C), T the context.
        n_head: H.
    """

    def __init__(self, kept: Tensor, n_head: int) -> None:
        L, T, _, B, C = kept.shape
        by_head = kept.view(L, T, 2, B, n_head, C // n_head).permute(2, 0, 3, 4, 1, 5)  # (2, L, B, H, T, D)
        self._keys, self._values = by_head.unbind()
        self._places = kept.transpose(2, 3)  # (L, T, B, 2, C)

    def up_to(self, length: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each block the place of the key and value of the last position, (B, 2, C), and the keys and the
        values of all `length` positions, each (B, H, length, D)."""
        keys, values = self._keys.narrow(3, 0, length), self._values.narrow(3, 0, length)
        return zip(self._places[:, length - 1].unbind(), keys.unbind(), values.unbind(), strict=True)


def attend_in_order(qkv: Tensor, place: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Map (B, 3C) of the last position to (B, C); the rest as `InOrder.up_to` gives it."""
    B, H, _, D = keys.shape
    q, new = torch.split(qkv, [H * D, 2 * H * D], dim=1)
    place.copy_(new.view(place.shape))
    return F.scaled_dot_product_attention(q.view(B, H, 1, D), keys, values).reshape(q.shape)


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
