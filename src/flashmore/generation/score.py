"""The log-probability of names under a model.

Shape letters: B batch, T positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from flashmore.data.batches import IGNORE, encode_items
from flashmore.data.text import normalize
from flashmore.errors import DataError
from flashmore.generation.draw import require_finite
from flashmore.generation.sample import Name, load_model
from flashmore.memory import largest_batch
from flashmore.runs import Run


@dataclass(frozen=True)
class Scored(Name):
    """A name and its log-probability."""

    log_prob_per_char: float
    """`log_prob` divided by the number of characters plus one, since EOS counts: minus the name's loss."""


def score(run: Run, names: Sequence[str], device: torch.device | str = "cpu") -> list[Scored]:
    """Each name's log-probability under the best weights of a run, or else the last.

    Raises:
        DataError: a name is empty, too long for the model, or has characters outside the vocabulary; all such
            names are listed.
        RunError: the run has no checkpoint, or a damaged one, or is on one long text.
        ConfigError: the device cannot be used here.
    """
    run.require_items("to score names")
    texts = [normalize(name) for name in names]
    _require_scorable(run, texts)
    values = log_probs(run, load_model(run, device), texts, device)
    return [
        Scored(text, run.split.novelty(text), value, value / (len(text) + 1))
        for text, value in zip(texts, values, strict=True)
    ]


@torch.inference_mode()
def log_probs(run: Run, model: nn.Module, texts: Sequence[str], device: torch.device | str) -> list[float]:
    """The natural logarithm of the probability of each whole text, EOS included.

    The model is in evaluation mode on the device; texts are in NFC, and shorter than the context.
    """
    size = largest_batch(run.model, run.model.block_size)
    values: list[float] = []
    for start in range(0, len(texts), size):
        sequences = encode_items(texts[start : start + size], run.vocabulary, run.model.block_size, device)
        longest = int(sequences.lengths.max())
        ids, targets = sequences.ids[:, :longest], sequences.targets[:, :longest]  # (B, T)
        logits = model(ids).transpose(1, 2)  # (B, V, T)
        losses = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")  # (B, T)
        sums = losses.cpu().double().sum(1).neg()
        require_finite(sums)
        values += sums.tolist()
    return values


def _require_scorable(run: Run, texts: Sequence[str]) -> None:
    limit = run.model.block_size - 1
    characters = f"any of the {run.vocabulary.size - 1} characters of the run's vocabulary"
    problems = []
    for text in texts:
        shown = repr(text if len(text) <= 40 else text[:40] + "…")
        if not text:
            problems.append("an empty name")
        if len(text) > limit:
            problems.append(f"{shown} of {len(text)} characters")
        try:
            run.vocabulary.encode(text)
        except DataError as error:
            problems.append(f"{shown}: {error.found}")
            characters = error.valid
    if problems:
        wanted = f"names of 1 to {limit} characters that the model has learned"
        raise DataError(wanted, "; ".join(problems), characters)
