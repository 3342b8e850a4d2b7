"""Samples many sequences in parallel from a model, character by character.

Shape letters: B batch, T positions, V vocabulary, R rows of logits.
"""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.random import RandomState
from torch import Tensor

from flashmore.data.vocabulary import EOS
from flashmore.errors import RunError
from flashmore.generation.cache import Decoder
from flashmore.generation.options import GenerateOptions

_KEPT_APART = ("cuda",)
"""Devices on which each draw keeps its own row to the end, which avoids synchronisation."""
_CHECKED_EVERY = 8
"""There, characters between two checks whether all draws have reached EOS."""


@dataclass(frozen=True)
class Drawn:
    """Sequences after BOS, on the CPU."""

    ids: Tensor
    """(B, T) int64, T the context: the prefix, the drawn ids, and EOS to the end, if it was reached."""
    log_probs: Tensor
    """(B,) float64: natural logarithm of the probability of the row up to its first EOS, prefix included, at
    temperature 1 and without top-k or top-p."""


def random_numbers(seed: int) -> RandomState:
    """The numbers in [0, 1) of Python's `random.Random(seed).random()`, many at a time, for a seed from 0.

    Python and NumPy guarantee their sequence, PyTorch does not; and the page of a run has the same
    (share/page/random.js). docs/generating.md describes how names follow from it.
    """
    return RandomState([seed & 0xFFFFFFFF] if seed < 2**32 else [seed & 0xFFFFFFFF, seed >> 32])


def seed_of(options: GenerateOptions) -> int:
    """The seed of the options, or a random one."""
    return secrets.randbelow(2**32) if options.seed is None else options.seed


@torch.inference_mode()
def draw(
    decoder: Decoder,
    prefix: Sequence[int],
    count: int,
    context: int,
    options: GenerateOptions,
    numbers: RandomState,
    part: slice = slice(None),
) -> Drawn:
    """Draw sequences until all have reached EOS or the context is full.

    Draws that are equal so far share a row, so that a prefix is computed once, and a draw that reached EOS
    leaves the batch; except on CUDA, where this would synchronise at every character.

    Args:
        prefix: ids after BOS in every sequence, fewer than the context.
        count: B.
        context: T.
        options: temperature, top-k and top-p.
        numbers: as `random_numbers` gives it. Each draw takes one number for each position after the prefix,
            whether it needs it or not, so it does not depend on the other draws.
        part: which of the B draws to make; the others only take their numbers.

    Raises:
        RunError: the logits are not finite.
    """
    device, known = decoder.device, len(prefix)
    apart = device.type in _KEPT_APART
    host = device if apart else torch.device("cpu")  # where characters are drawn: mps has no float64
    own = torch.from_numpy(numbers.random_sample((count, context - known)))[part]  # (B, T), B from here on
    count = len(own)
    start = torch.tensor([[EOS, *prefix]], device=device)  # (1, T)
    logits = decoder.start(start.expand(count if apart else 1, -1)).to(host)  # (R, V)
    ids = torch.full((context, count), EOS, device=host)
    log_probs = torch.zeros(context, count, dtype=torch.float64, device=host)
    ids[:known] = start[0, 1:, None].to(host)
    if known:
        of_prefix = decoder.model(start[:, :-1])[0].to(host).double().log_softmax(-1)  # (1, T) -> (T, V)
        log_probs[:known] = of_prefix.gather(1, ids[:known, :1])
    draws = torch.arange(count, device=host)  # (B,) those that go on
    rows = draws if apart else torch.zeros_like(draws)  # (B,) which row of the logits is theirs
    for position, number in enumerate(own.T.contiguous().to(host), start=known):
        scores = logits.double().log_softmax(-1)  # (R, V)
        chosen = pick(next_probabilities(scores, options), number[draws], rows)  # (B,)
        ids[position, draws] = chosen
        log_probs[position, draws] = scores[rows, chosen]
        looked = not apart or (position + 1) % _CHECKED_EVERY == 0
        if position == context - 1 or (looked and (ids[: position + 1] == EOS).any(0).all()):
            break
        if apart:
            logits = decoder.extend(chosen)
        else:
            # Drop the draws that reached EOS, and merge the rows of those that are equal so far.
            going, size = chosen != EOS, scores.size(1)
            codes, rows = torch.unique((rows * size + chosen)[going], return_inverse=True)
            draws = draws[going]
            codes = torch.cat((codes, codes[:1].expand(_rounded(len(codes)) - len(codes))))
            logits = decoder.extend((codes % size).to(device), (codes // size).to(device)).to(host)
    stops = ids == EOS
    after = stops.cumsum(0) > stops.long()  # drawn after the first EOS, where draws stay in the batch
    totals = log_probs.masked_fill(after, 0).sum(0).cpu()
    require_finite(totals)
    return Drawn(ids.masked_fill(after, EOS).T.cpu(), totals)


def _rounded(rows: int) -> int:
    """The number of rows that are computed for a number of rows that are needed.

    oneDNN compiles each product anew for each number of rows, which can take longer than the product. So
    there are two numbers from one power of two to the next, and multiples of 64 from 128 on.
    """
    multiple = min(64, 1 << max(0, rows.bit_length() - 2))
    return -(-rows // multiple) * multiple


def require_finite(numbers: Tensor) -> None:
    """Refuse the output of a model whose weights have diverged or were altered, with a RunError."""
    if not math.isfinite(float(numbers.sum())):
        raise RunError(
            "a model with finite outputs",
            "NaN or infinities",
            "a run with a finite loss; try a lower --learning-rate",
        )


def pick(probabilities: Tensor, numbers: Tensor, rows: Tensor | None = None) -> Tensor:
    """Inverse transform sampling: an id, (B,) int64, for each of the numbers in [0, 1), from a row of (R, V).

    `rows`, (B,) int64, says from which row; None from the same one as the number.
    Devroye 1986, "Non-Uniform Random Variate Generation", section III.2.1.
    """
    sums = probabilities.cumsum(-1)
    if rows is not None:
        sums = sums[rows]  # (R, V) -> (B, V)
    # Ids of probability 0 do not increase the sums, so they are never found; scaling keeps numbers below the
    # last sum, which is rounded.
    last = sums.size(1) - 1
    found = torch.searchsorted(sums, numbers.unsqueeze(1) * sums.narrow(1, last, 1), right=True).squeeze(1)
    return found.clamp_(max=last)  # where probabilities are NaN, none is found


def next_probabilities(logits: Tensor, options: GenerateOptions) -> Tensor:
    """Sampling probabilities (R, V) for logits (R, V).

    Temperature is applied first, then top-k, then top-p of the rest. Each excludes characters by the logit
    −∞, so that the softmax renormalises the others.
    """
    kept = apply_temperature(logits, options.temperature)
    if options.top_k is not None:
        kept = keep_top_k(kept, options.top_k)
    if options.top_p is not None:
        kept = keep_top_p(kept, options.top_p)
    return kept.softmax(-1)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits (…, V) by a temperature above 0.

    Ackley, Hinton and Sejnowski 1985, "A Learning Algorithm for Boltzmann Machines".
    """
    # The largest becomes 0, so that a tiny temperature gives −∞ for the others, and never ∞ − ∞.
    return (logits - logits.amax(-1, keepdim=True)).div_(temperature)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits (…, V) and any ties with the smallest of them; all if k is at least V.

    Fan et al. 2018, "Hierarchical Neural Story Generation" (https://arxiv.org/abs/1805.04833).
    """
    k = min(k, logits.size(-1))
    smallest = logits.topk(k).values.narrow(-1, k - 1, 1)  # (…, 1)
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
