"""The loss that every model is trained on and judged by."""

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmore.data.batches import IGNORE


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats over real characters, EOS included.

    Args:
        logits: (B, T, V), or (N, V) of a packed batch.
        targets: (B, T) or (N,) int64, `IGNORE` where there is no character.

    Returns:
        A scalar float32 (float64 for float64 logits).
    """
    flat = logits.flatten(0, -2)  # (B·T, V) or (N, V)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE)
