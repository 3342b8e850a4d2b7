"""Sampling filters on logits: temperature, top-k and top-p.

Each is a pure function on logits (…, V) of any floating dtype, applied to each row. Excluded characters get
the logit −∞, so that the softmax of the result renormalises the others.
"""

import torch
from torch import Tensor


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits (…, V) by a temperature above 0.

    Ackley, Hinton and Sejnowski 1985, "A Learning Algorithm for Boltzmann Machines".
    """
    # The largest becomes 0, so that a tiny temperature gives −∞ for the others, and never ∞ − ∞.
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits (…, V) and any ties with the smallest of them; all if k is at least V.

    Fan et al. 2018, "Hierarchical Neural Story Generation" (https://arxiv.org/abs/1805.04833).
    """
    smallest = logits.topk(min(k, logits.size(-1))).values[..., -1:]  # (…, 1)
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest logits (…, V) whose probabilities add up to p in (0, 1]; of ties, the first ones.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration" (https://arxiv.org/abs/1904.09751).
    """
    if p == 1:
        return logits  # rounded sums can reach 1 before the last character
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    reached = probabilities.cumsum(-1) - probabilities >= p  # by the more likely ones alone
    return logits.masked_fill(torch.zeros_like(reached).scatter(-1, order, reached), -torch.inf)
