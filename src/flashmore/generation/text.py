"""Samples text from a model of one long text, character by character.

Shape letters: B batch, T positions, V vocabulary.
"""

import secrets
from dataclasses import dataclass

import torch

from flashmore.data.text import normalize
from flashmore.errors import ConfigError, RunError
from flashmore.generation.cache import decoder_for
from flashmore.generation.draw import next_probabilities, require_finite
from flashmore.generation.load import load_model
from flashmore.generation.options import GenerateOptions
from flashmore.runs import Run

LONGEST = 10**7


@dataclass(frozen=True)
class TextSample:
    """Sampled text."""

    prefix: str
    """The prefix, normalised like the text."""
    text: str
    """The text sampled after it."""
    seed: int
    """Seed that reproduces the text."""


@torch.inference_mode()
def continue_text(
    run: Run, options: GenerateOptions, length: int, device: torch.device | str = "cpu"
) -> TextSample:
    """Sample text after a prefix from the best weights of a run, or else the last.

    Each character is conditioned on the last T characters, T being the context. Until the context is full, a
    model with a KV cache computes one position per character; then the window slides, and every position is
    recomputed. Without a prefix the model first sees one line ending, or else the text's first character in
    code point order, which is not part of the sample.

    Args:
        run: on a text of characters.
        options: prefix, temperature, top-k, top-p and seed; the rest is for names.
        length: number of characters.
        device: the device to compute on.

    Raises:
        DataError: the prefix has characters outside the vocabulary.
        ConfigError: a length below 1 or above 10 million, or the device cannot be used here.
        RunError: the run is on items or on ids without characters, has no checkpoint, or a damaged one.
    """
    if run.text is None or run.text.kind != "characters":
        found = "a run on items" if run.text is None else "a run on ids, whose characters it does not know"
        raise RunError(f"a run on a text at {run.path}", found, "a run of `flashmore train FILE --mode text`")
    if not 1 <= length <= LONGEST:
        raise ConfigError("a sensible --length", str(length), f"a whole number from 1 to {LONGEST:,}")
    prefix = normalize(options.prefix)
    context = run.model.block_size
    ids = (_encode(run, prefix) or [_first_id(run)])[-context:]
    model = load_model(run, device)
    decoder = decoder_for(model, 1)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    generator = torch.Generator().manual_seed(seed)
    begun = len(ids)
    for known in range(begun, begun + length):
        if known == begun:
            logits = decoder.start(torch.tensor([ids], device=device))[:, -1]  # (1, T, V) -> (1, V)
        elif known <= context:
            logits = decoder.extend(torch.tensor(ids[-1:], device=device))
        else:  # The window slides: every position changes, so the cache is invalid.
            logits = model(torch.tensor([ids[-context:]], device=device))[:, -1]
        logits = logits.cpu()
        require_finite(logits)
        ids.append(int(torch.multinomial(next_probabilities(logits, options), 1, generator=generator)))
    text = "".join(run.vocabulary.characters[number] for number in ids[begun:])
    return TextSample(prefix, text, seed)


def _encode(run: Run, text: str) -> list[int]:
    """Ids of a long text start at 0: it has no BOS."""
    return [number - 1 for number in run.vocabulary.encode(text)]


def _first_id(run: Run) -> int:
    characters = run.vocabulary.characters
    return characters.index("\n") if "\n" in characters else 0
