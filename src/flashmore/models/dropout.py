"""Dropout that also compiles in the graph of a whole training step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero each element with probability p in training, and scale the rest by 1 / (1 - p).

    Srivastava et al. 2014, "Dropout". `nn.Dropout` queries the number of elements, which fails inside a
    gradient transform while torch.compile treats the number of tokens as dynamic; there it is written out.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Map x to the same shape."""
        if not self.training or self.p == 0:
            return x
        if torch.compiler.is_compiling():
            return torch.where(torch.rand_like(x) < self.p, 0.0, x / (1 - self.p))
        return F.dropout(x, self.p)
