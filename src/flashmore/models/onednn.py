"""Linear layers for generation: packed for oneDNN on a CPU, and as functions without a module's overhead.

PyTorch computes float32 products with MKL, which on AMD's CPUs does not use AVX-512; oneDNN does.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """An `nn.Linear` in float32 on a CPU, for inference; it shares the parameters, which must not change.

    Uses the operators with which Inductor computes the linear layers of a frozen model.

    Args:
        linear: the layer.
        gelu: the GELU that follows it, "none" or "tanh" as in `F.gelu`, which oneDNN applies before it stores
            the product; None where none follows.
    """

    def __init__(self, linear: nn.Linear, gelu: str | None = None) -> None:
        super().__init__()
        self.weight, self.bias, self.gelu = linear.weight, linear.bias, gelu
        self._after: tuple[str, list[float], str] = ("none", [], "") if gelu is None else ("gelu", [], gelu)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add what (…, I) maps to, without the GELU, to a residual (…, O)."""
        if x.numel() <= x.size(-1):
            return residual + F.linear(x, self.weight, self.bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._packed, self.bias, "add")
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, I) to (…, O)."""
        if x.numel() <= x.size(-1):  # one row, for which MKL's product with a vector is faster, or none
            row = F.linear(x, self.weight, self.bias)
            return row if self.gelu is None else F.gelu(row, approximate=self.gelu)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, *self._after)
        return y


def product_and_sum(layer: nn.Linear | PackedLinear) -> Callable[[Tensor, Tensor], Tensor]:
    """The function from a residual (B, O) and inputs (B, I) to their sum after the layer, in inference."""
    if isinstance(layer, PackedLinear):
        return layer.plus
    return lambda residual, x: residual + layer.forward(x)


def norm(layer: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """The function of a layer norm, in inference."""
    shape, weight, bias, eps = list(layer.normalized_shape), layer.weight, layer.bias, layer.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def pack(model: nn.Module) -> nn.Module:
    """Replace the linear layers of a model in evaluation mode, in place, where oneDNN is faster.

    The GELU of a feed-forward layer becomes part of its first product. Results differ by rounding alone.
    Returns the model.
    """
    backends: Any = torch.backends
    if backends.mkldnn.is_available() and backends.mkl.is_available():
        for module in list(model.modules()):
            for name, layer in list(module.named_children()):
                if type(layer) is nn.Linear and layer.weight.type() == "torch.FloatTensor":
                    # Of this package's feed-forward layers: `c_fc`, then `activate`, which is this GELU.
                    gelu = getattr(module, "gelu", None) if name == "c_fc" else None
                    setattr(module, name, PackedLinear(layer, gelu))
                    if gelu is not None:
                        module.activate = nn.Identity()
    return model
