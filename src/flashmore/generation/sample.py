"""Names drawn from a model, character by character.

Shape letters: B batch, T positions, V vocabulary.
"""

import secrets
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashmore.data.vocabulary import STOP
from flashmore.data.words import normalize
from flashmore.errors import RecipeError
from flashmore.generation.filters import apply_temperature, keep_top_k, keep_top_p
from flashmore.generation.load import largest_batch, load_model
from flashmore.generation.options import GenerateOptions
from flashmore.generation.score import Novelty, log_probs
from flashmore.runs import Run

DRAWS_PER_NAME = 100
"""After this many draws for each name asked for, generation gives what it has."""

_FEWEST_DRAWS = 32


@dataclass(frozen=True)
class Name:
    """A generated name."""

    text: str
    novelty: Novelty
    """The first part of the data that holds the name: train, validation, test; else new."""
    log_prob: float
    """Natural logarithm of the probability of the whole name, prefix and STOP included, at temperature 1
    and without top-k or top-p: what `score` gives."""


@dataclass(frozen=True)
class Generated:
    """What generation gave."""

    names: list[Name]
    """In the order in which they were drawn."""
    draws: int
    """Draws made, with those that gave no name."""
    complete: bool
    """Whether there are as many names as were asked for."""
    seed: int
    """With it, the same call gives the same names."""


def generate(run: Run, options: GenerateOptions, device: torch.device | str = "cpu") -> Generated:
    """Draw names from the best weights of a run, or the last where there are no best.

    A draw gives no name where it has not met STOP when the context is full (so that every log-probability is
    that of a whole name), where the data could not hold it (empty, with spaces around it, or not in NFC),
    where it was drawn before (unless `repeats`), and where the data holds it (if `new_only`).

    Raises:
        DataError: the prefix has characters that the model never learned.
        RecipeError: the prefix is too long for the model, or the device cannot be used here.
        RunError: the run has no checkpoint, or a damaged one, or is on one long text (see `continue_text`).
    """
    run.require_items("to draw names")
    prefix = _encode_prefix(run, options.prefix)
    model = load_model(run, device)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    texts, draws = _collect(run, model, prefix, options, torch.Generator().manual_seed(seed))
    names = [
        Name(text, run.split.novelty(text), log_prob)
        for text, log_prob in zip(texts, log_probs(run, model, texts, device), strict=True)
    ]
    return Generated(names, draws, len(names) == options.count, seed)


@torch.inference_mode()
def draw_ids(
    model: nn.Module, start: Tensor, context: int, options: GenerateOptions, generator: torch.Generator
) -> Tensor:
    """Go on with every row until all have met STOP or the context is full.

    Args:
        model: in evaluation mode; ids (B, T) to logits (B, T, V).
        start: (B, T) int64, START and the prefix, on the model's device; T is at most the context.
        context: the model's longest sequence.
        options: temperature, top-k and top-p.
        generator: on the CPU, so that a seed means the same on every device.

    Returns:
        Ids (B, up to context + 1) int64, with anything after a row's first STOP beyond START.
    """
    ids = start
    stopped = torch.zeros(len(ids), dtype=torch.bool)  # (B,)
    while not stopped.all() and ids.size(1) <= context:
        logits = model(ids)[:, -1]  # (B, T, V) -> (B, V)
        drawn = torch.multinomial(next_probabilities(logits, options), 1, generator=generator)  # (B, 1)
        stopped |= drawn[:, 0] == STOP
        ids = torch.cat((ids, drawn.to(ids.device)), dim=1)  # (B, T + 1)
    return ids


def next_probabilities(logits: Tensor, options: GenerateOptions) -> Tensor:
    """Turn logits (B, V) into what is drawn from: probabilities (B, V) float64 on the CPU.

    Temperature comes first, then top-k, then top-p of what is left.
    """
    kept = apply_temperature(logits.cpu().double(), options.temperature)
    if options.top_k is not None:
        kept = keep_top_k(kept, options.top_k)
    if options.top_p is not None:
        kept = keep_top_p(kept, options.top_p)
    return kept.softmax(-1)


def _encode_prefix(run: Run, prefix: str) -> list[int]:
    text = normalize(prefix).lstrip()  # as the data is kept, where no item begins with a space
    ids = run.vocabulary.encode(text)
    limit = run.model.context - 1
    if len(ids) > limit:
        raise RecipeError(
            "a prefix that the model's context can hold",
            f"{len(ids)} characters",
            f"at most {limit} characters",
        )
    return ids


def _collect(
    run: Run, model: nn.Module, prefix: list[int], options: GenerateOptions, generator: torch.Generator
) -> tuple[list[str], int]:
    """Draw until there are enough names or too many draws; give the names and the number of draws."""
    device = next(model.parameters()).device
    start = torch.tensor([[STOP, *prefix]], device=device)  # (1, T)
    limit = DRAWS_PER_NAME * options.count
    texts: list[str] = []
    seen: set[str] = set()
    draws = 0
    while len(texts) < options.count and draws < limit:
        # A small batch takes as long as a single draw.
        batch = max(options.count - len(texts), _FEWEST_DRAWS)
        batch = min(batch, limit - draws, largest_batch(run.model))
        rows = draw_ids(model, start.expand(batch, -1), run.model.context, options, generator).tolist()
        for row in rows:
            draws += 1
            text = _read_name(run, row)
            known = options.new_only and run.split.novelty(text) != "new"
            if text and not known and (options.repeats or text not in seen):
                texts.append(text)
                seen.add(text)
            if len(texts) == options.count:
                break
    return texts, draws


def _read_name(run: Run, row: list[int]) -> str:
    """Give the name in a row of ids; empty where there is none that the data could hold."""
    drawn = row[1:]
    text = run.vocabulary.decode(drawn)
    return text if STOP in drawn and text == normalize(text).strip() else ""
