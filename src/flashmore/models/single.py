"""The Transformer one position at a time for one sequence.

In a small model, most of the time goes into calling operations rather than into their arithmetic. So this has
as few of them as possible, and those of PyTorch that are called the fastest for one row.

Shape letters: I inputs and O outputs of a layer, C channels, V vocabulary, H heads of D channels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmore.models.kv_cache import InOrder
from flashmore.models.onednn import norm


class SingleStep:
    """One position of one sequence, in evaluation mode. The parameters must not change afterwards.

    Args:
        model: a `Transformer`.
    """

    def __init__(self, model: Any) -> None:
        self._wte, self._wpe = model.wte.weight, model.wpe.weight.unbind()
        self._blocks = [_block(block) for block in model.blocks]
        self._ln_f, self._lm_head = norm(model.ln_f), _product(*_transposed(model.lm_head))

    def __call__(self, ids: Tensor, length: int, in_order: InOrder) -> Tensor:
        """Map the last id, (1,) int64, of `length` to logits (1, V)."""
        x = torch.embedding(self._wte, ids) + self._wpe[length - 1]  # (1, C)
        for block, kept in zip(self._blocks, in_order.up_to(length), strict=True):
            x = block(x, *kept)  # (1, C)
        return self._lm_head(self._ln_f(x))  # (1, V)


def _block(block: Any) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The function of a block from (1, C) and what `InOrder.up_to` gives to (1, C)."""
    ln_1, ln_2, feed = norm(block.ln_1), norm(block.ln_2), _feed_forward(block.mlp)
    C, c_attn = block.ln_1.normalized_shape[0], block.attention.c_attn
    query, key_and_value = (_product(*_transposed(c_attn, part)) for part in (slice(C), slice(C, None)))
    attended = _product_and_sum(block.attention.c_proj)
    q = c_attn.weight.new_empty(1, C)
    by_head = q.view(1, block.attention.n_head, 1, -1)  # (1, H, 1, D)

    def step(x: Tensor, place: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        normed = ln_1(x)
        key_and_value(normed, out=place.view(1, -1))
        query(normed, out=q)
        x = attended(x, F.scaled_dot_product_attention(by_head, keys, values).reshape(1, -1))
        return feed(x, ln_2(x))

    return step


def _feed_forward(mlp: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The function from a residual (1, C) and inputs (1, C) to their sum after a feed-forward layer."""
    after = _product_and_sum(mlp.c_proj)
    if mlp.gelu != "none" or mlp.c_fc.weight.device.type != "cpu":
        activate = mlp.activate if mlp.gelu is None else partial(F.gelu, approximate=mlp.gelu)
        multiply = _product(*_transposed(mlp.c_fc))
        return lambda residual, x: after(residual, activate(multiply(x)))
    # PyTorch has oneDNN compute this function of contiguous numbers, and the call takes four times as long as
    # the function itself of so few. So there is a gap in their middle, where the weights are zero.
    weight, bias = _transposed(mlp.c_fc)
    weight, bias = _with_gap(weight), None if bias is None else _with_gap(bias)
    multiply = _product(weight, bias)
    hidden = weight.new_empty(1, weight.size(1))  # (1, 4C + 2 × gap)
    used = hidden.view(2, -1)[:, :-_GAP]  # (2, 2C)

    def feed(residual: Tensor, x: Tensor) -> Tensor:
        multiply(x, out=hidden)
        return after(residual, F.gelu(used).view(1, -1))

    return feed


_GAP = 16
"""Numbers: a cache line."""


def _with_gap(x: Tensor) -> Tensor:
    """Add zeros after each half of the last dimension."""
    return F.pad(x.view(*x.shape[:-1], 2, -1), (0, _GAP)).flatten(-2)


def _transposed(layer: Any, outputs: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
    """The weight of a linear layer as (I, O), which MKL reads in longer runs, and its bias."""
    bias = None if layer.bias is None else layer.bias.detach()[outputs]
    return layer.weight.detach()[outputs].t().contiguous(), bias


def _product(weight: Tensor, bias: Tensor | None = None) -> Callable[..., Tensor]:
    """The function from (1, I) to (1, O), which may be given as `out`."""
    return partial(torch.mm, mat2=weight) if bias is None else partial(torch.addmm, bias, mat2=weight)


def _product_and_sum(layer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The function from a residual (1, O) and inputs (1, I) to their sum after a layer."""
    weight, bias = _transposed(layer)
    if bias is None:
        return partial(torch.addmm, mat2=weight)
    return lambda residual, x: torch.addmm(residual, x, weight).add_(bias)
