"""AdamW, Muon, and the learning rate.

Muon's update of a matrix is its orthogonalised momentum: Jordan et al. 2024, "Muon: An optimizer for hidden
layers in neural networks", https://kellerjordan.github.io/posts/muon/. PyTorch's,
https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html, loops over matrices in bfloat16; the
flat step computes all of them together in float32.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flashmore.config import TrainConfig

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


def orthogonal(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """Orthogonalise consecutive matrices of these shapes, and scale each by √max(1, rows / columns).

    Matrices with the same smaller dimension are computed together.
    """
    parts = torch.split(flat, [rows * columns for rows, columns in shapes])
    matrices = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    wide = [matrix.T if matrix.size(0) > matrix.size(1) else matrix for matrix in matrices]
    results: list[Tensor] = [flat] * len(wide)
    for smaller in sorted({min(shape) for shape in shapes}):
        members = [index for index, shape in enumerate(shapes) if min(shape) == smaller]
        roots = inverse_square_roots(torch.stack([wide[index] @ wide[index].T for index in members]))
        for index, root in zip(members, roots.unbind(), strict=True):
            rows, columns = shapes[index]
            made = root @ wide[index]
            scale = max(1.0, rows / columns) ** 0.5
            results[index] = scale * (made.T if rows > columns else made).reshape(-1)
    return torch.cat(results)


def inverse_square_roots(grams: Tensor) -> Tensor:
    """For each G = X Xᵀ, approximately G^(-1/2), whose product with X = U S Vᵀ is U Vᵀ.

    `torch.optim.Muon` replaces X by a X + (b G + c G²) X and computes G anew in every step. As each of these
    is the product of X and a polynomial of the first G, steps on G alone do the same: products of r × r
    matrices however wide X is, and one batch for matrices of several widths. They need float32, because the
    eigenvalues of G are the squares of X's singular values.

    Args:
        grams: (n, r, r).
    """
    a, b, c = NEWTON_SCHULZ
    norms = grams.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=1e-14).sqrt()  # of X, Frobenius
    grams = grams / norms**2
    roots = torch.eye(grams.size(1), dtype=grams.dtype, device=grams.device) / norms
    for _ in range(NEWTON_SCHULZ_STEPS):
        powers = torch.baddbmm(grams, grams, grams, beta=b, alpha=c)  # b G + c G²
        roots = torch.baddbmm(roots, powers, roots, beta=a)
        grams = torch.baddbmm(grams, powers, grams, beta=a)
        grams = torch.baddbmm(grams, grams, powers, beta=a)
    return roots
