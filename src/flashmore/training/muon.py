"""Muon: the update of a matrix is its orthogonalised momentum; batched over matrices of one shape.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
https://kellerjordan.github.io/posts/muon/. The rule is that of torch.optim.Muon,
https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html, which loops over matrices in bfloat16.
The matrices here are small, so this uses float32 and one batched product for all matrices of a shape.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton–Schulz iteration, chosen to bring singular values near 1 quickly."""


def muon_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices of a transformer's blocks; AdamW updates embeddings, output layer, biases and gains."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith("blocks.") and parameter.ndim == 2
    }


class MatrixGroups:
    """Matrices stored consecutively in a flat buffer, batched by shape.

    Args:
        shapes: shape of each matrix, in the buffer's order.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = list(shapes.values())

    def __bool__(self) -> bool:
        return bool(self._shapes)

    def orthogonal(self, flat: Tensor) -> Tensor:
        """Orthogonalise every matrix of the flat buffer, scaled by √max(1, rows / columns)."""
        parts = torch.split(flat, [rows * columns for rows, columns in self._shapes])
        results: list[Tensor] = [flat] * len(parts)
        for shape in sorted(set(self._shapes)):
            members = [index for index, other in enumerate(self._shapes) if other == shape]
            stacked = torch.stack([parts[index].view(shape) for index in members])  # (n, rows, columns)
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for index, matrix in zip(members, newton_schulz(stacked).unbind(), strict=True):
                results[index] = scale * matrix.reshape(-1)
        return torch.cat(results)


def newton_schulz(matrices: Tensor) -> Tensor:
    """Map each matrix U S Vᵀ of (n, rows, columns) to approximately U Vᵀ, using only matrix products."""
    a, b, c = COEFFICIENTS
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.transpose(1, 2)  # (n, r, r), r the smaller dimension
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    result: Tensor = x.transpose(1, 2) if tall else x
    return result
