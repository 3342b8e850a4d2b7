"""Turn `auto` into the name of a backend, and make sure that a named one runs before training begins."""

from dataclasses import dataclass

import torch

from flashmore.backends.contract import attention
from flashmore.backends.names import Backend
from flashmore.errors import BackendUnavailable

PREFERENCE: tuple[Backend, ...] = ("flash", "cudnn", "efficient", "math")


@dataclass(frozen=True)
class Choice:
    """The backend that training will use, and why it is this one."""

    backend: str
    why: str


def choose(
    name: str, *, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, dropout_p: float
) -> Choice:
    """Settle which backend runs causal self-attention of this shape, by running it forward and backward once.

    Args:
        name: a backend, or `auto` for the first of `PREFERENCE` that runs.
        shape: (B, H, T, D).
        dtype: what q, k and v will be: under autocast, the 16-bit type.
        device: where.
        dropout_p: on the weights, in training.

    Raises:
        BackendUnavailable: `name` cannot run; with every reason and the names that can.
    """
    if name != "auto":
        _try(name, shape, dtype, device, dropout_p)
        return Choice(name, "asked for by name")
    for candidate in PREFERENCE:
        try:
            _try(candidate, shape, dtype, device, dropout_p)
        except BackendUnavailable:
            continue
        return Choice(candidate, f"the first of {', '.join(PREFERENCE)} that runs here")
    return Choice("manual", "no kernel of PyTorch's runs here")


def _try(
    name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, dropout_p: float
) -> None:
    q = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
    out = attention(q, q, q, backend=name, causal=True, dropout_p=dropout_p)
    torch.autograd.grad(out.sum(), q)
