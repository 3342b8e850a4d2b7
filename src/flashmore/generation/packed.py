"""Linear layers whose weights are packed for oneDNN, for generation on a CPU.

PyTorch computes float32 products with MKL, which on AMD's CPUs does not use AVX-512; oneDNN does.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """An `nn.Linear` in float32 on a CPU, for inference; it shares the parameters, which must not change.

    Uses the operators with which Inductor computes the linear layers of a frozen model.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, I) to (…, O)."""
        if x.numel() <= x.size(-1):  # one row, for which MKL's product with a vector is faster, or none
            return F.linear(x, self.weight, self.bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y


def pack(model: nn.Module) -> nn.Module:
    """Replace the linear layers of a model in evaluation mode, in place, where oneDNN is faster.

    Results differ by rounding alone. Returns the model.
    """
    backends: Any = torch.backends
    if backends.mkldnn.is_available() and backends.mkl.is_available():
        for module in list(model.modules()):
            for name, layer in module.named_children():
                if type(layer) is nn.Linear and layer.weight.type() == "torch.FloatTensor":
                    setattr(module, name, PackedLinear(layer))
    return model
