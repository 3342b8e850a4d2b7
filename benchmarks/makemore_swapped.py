"""Run a makemore checkout with one method exchanged in memory: the change of the seed experiment.

    python benchmarks/makemore_swapped.py PATH/makemore.py ARGUMENTS…

The file on disk stays as it is. Attention by hand becomes PyTorch's scaled_dot_product_attention with the
FlashAttention kernel forced; every other line of makemore runs unchanged.
"""

import ast
import sys
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def fused_forward(self: Any, x: Tensor) -> Tensor:
    """Causal self-attention over (B, T, C), fused; `self` is a CausalSelfAttention of makemore's."""
    B, T, C = x.shape
    q, k, v = (
        part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)
        for part in self.c_attn(x).split(C, dim=2)
    )
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True)
    out: Tensor = self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # (B, H, T, D) -> (B, T, C)
    return out


def main() -> None:
    """Execute the script named first with the rest as its arguments."""
    path = Path(sys.argv[1])
    sys.argv = sys.argv[1:]
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    swap = ast.parse("CausalSelfAttention.forward = fused_forward").body
    starts = [at for at, node in enumerate(tree.body) if isinstance(node, ast.If)]  # if __name__ == ...
    tree.body[starts[-1] : starts[-1]] = swap
    names = {"__name__": "__main__", "__file__": str(path), "fused_forward": fused_forward}
    exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), names)


if __name__ == "__main__":
    main()
