"""AdamW, Muon, and the learning rate.

Muon's update of a matrix is its orthogonalised momentum: Jordan et al. 2024, "Muon: An optimizer for hidden
layers in neural networks", https://kellerjordan.github.io/posts/muon/. PyTorch's,
https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html, loops over matrices in bfloat16; the
flat step uses one batched product for all matrices of a shape, on a CPU without bfloat16 in float32.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flashmore.config import TrainConfig
from flashmore.training.products import has_bfloat16

EPS = 1e-8
"""AdamW's epsilon."""
MUON_MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton–Schulz iteration, chosen to bring singular values near 1 quickly."""
ADAMW_MOMENTS, MUON_MOMENTS = ("exp_avg", "exp_avg_sq"), ("momentum_buffer",)
"""PyTorch's names of the optimizer state of each parameter. A checkpoint holds `MOMENT.PARAMETER` for each,
independent of the kind of step, and `step`, the number of AdamW updates."""


def optimizers_of(model: nn.Module, config: TrainConfig, *, fused: bool) -> list[torch.optim.Optimizer]:
    """AdamW for every parameter, as in makemore; or Muon for the blocks' matrices and AdamW for the rest.

    Loshchilov & Hutter 2019, https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html;
    https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html.

    Args:
        fused: use the fused AdamW kernel instead of a loop over parameters.
    """
    matrices = muon_matrices(model) if config.optimizer == "muon" else {}
    rest = [parameter for name, parameter in model.named_parameters() if name not in matrices]
    decayed = [parameter for parameter in rest if is_decayed(parameter, config)]
    others = [parameter for parameter in rest if not is_decayed(parameter, config)]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=EPS,
        weight_decay=config.weight_decay,
        fused=fused,
        foreach=False,
    )
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(
        matrices.values(),
        lr=config.muon_learning_rate,
        weight_decay=config.weight_decay,
        momentum=MUON_MOMENTUM,
    )
    return [adamw, muon]


def is_decayed(parameter: nn.Parameter, config: TrainConfig) -> bool:
    """Whether weight decay applies to a parameter."""
    return config.decay_on == "all" or parameter.ndim > 1


def learning_rate_share(step: int, config: TrainConfig) -> float:
    """Learning rate of the update after `step` updates, as a fraction of the peak: warm-up, then schedule.

    The cosine is that of Loshchilov & Hutter 2017 (SGDR), without restarts.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.lr_schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


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
        self._bfloat16 = has_bfloat16()  # not while a compiler traces, which takes only functions of tensors

    def __bool__(self) -> bool:
        return bool(self._shapes)

    def orthogonal(self, flat: Tensor) -> Tensor:
        """Orthogonalise every matrix of the flat buffer, scaled by √max(1, rows / columns)."""
        parts = torch.split(flat, [rows * columns for rows, columns in self._shapes])
        results: list[Tensor] = [flat] * len(parts)
        for shape in sorted(set(self._shapes)):
            members = [index for index, other in enumerate(self._shapes) if other == shape]
            stacked = torch.stack([parts[index].view(shape) for index in members])  # (n, rows, columns)
            made = newton_schulz(stacked, bfloat16=self._bfloat16)
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for index, matrix in zip(members, made.unbind(), strict=True):
                results[index] = scale * matrix.reshape(-1)
        return torch.cat(results)


def newton_schulz(matrices: Tensor, *, bfloat16: bool) -> Tensor:
    """Map each matrix U S Vᵀ of (n, rows, columns) to approximately U Vᵀ, using only matrix products.

    Args:
        matrices: (n, rows, columns).
        bfloat16: compute float32 matrices on a CPU in bfloat16, like `torch.optim.Muon`.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if bfloat16 and x.device.type == "cpu" and x.dtype == torch.float32:
        x = x.bfloat16()
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.transpose(1, 2)  # (n, r, r), r the smaller dimension
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)
