"""Samples names from a run."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from flashmore.data.text import normalize
from flashmore.data.vocabulary import EOS
from flashmore.errors import ConfigError
from flashmore.generation.draw import Drawn, draw
from flashmore.generation.load import load_model
from flashmore.generation.options import GenerateOptions
from flashmore.generation.score import Novelty
from flashmore.memory import largest_batch
from flashmore.runs import Run

DRAWS_PER_NAME = 100
"""Generation stops after this many draws per requested name."""

_FEWEST_DRAWS = 32


@dataclass(frozen=True)
class Name:
    """A generated name."""

    text: str
    novelty: Novelty
    """The first part of the data that contains the name: train, validation, test; else new."""
    log_prob: float
    """Natural logarithm of the probability of the whole name, prefix and EOS included, at temperature 1
    and without top-k or top-p, as in `score`."""


@dataclass(frozen=True)
class Generated:
    """The result of `generate`."""

    names: list[Name]
    """In order of drawing."""
    draws: int
    """Number of draws, including those that gave no name."""
    complete: bool
    """Whether there are as many names as requested."""
    seed: int
    """Seed that reproduces the names."""


def generate(run: Run, options: GenerateOptions, device: torch.device | str = "cpu") -> Generated:
    """Draw names from the best weights of a run, or else the last.

    A draw gives no name if it has not reached EOS when the context is full (so every log-probability is that
    of a whole name), if the data could not contain it (empty, with surrounding spaces, or not in NFC), if it
    was drawn before (unless `repeats`), or if the data contains it (with `new_only`).

    Raises:
        DataError: the prefix has characters outside the vocabulary.
        ConfigError: the prefix is too long for the model, or the device cannot be used here.
        RunError: the run has no checkpoint, or a damaged one, or is on one long text (see `continue_text`).
    """
    run.require_items("to draw names")
    prefix = _encode_prefix(run, options.prefix)
    model = load_model(run, device)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    names, draws = _collect(run, model, prefix, options, torch.Generator().manual_seed(seed))
    return Generated(names, draws, len(names) == options.count, seed)


def _encode_prefix(run: Run, prefix: str) -> list[int]:
    text = normalize(prefix).lstrip()  # as in the data, where no item starts with a space
    ids = run.vocabulary.encode(text)
    limit = run.model.block_size - 1
    if len(ids) > limit:
        raise ConfigError(
            "a prefix that the model's context can hold",
            f"{len(ids)} characters",
            f"at most {limit} characters",
        )
    return ids


def _collect(
    run: Run, model: nn.Module, prefix: list[int], options: GenerateOptions, generator: torch.Generator
) -> tuple[list[Name], int]:
    """Draw until there are enough names or too many draws; returns the names and the number of draws."""
    limit = DRAWS_PER_NAME * options.count
    names: list[Name] = []
    seen: set[str] = set()
    draws = 0
    while len(names) < options.count and draws < limit:
        # A small batch takes as long as a single draw.
        batch = max(options.count - len(names), _FEWEST_DRAWS)
        batch = min(batch, limit - draws, largest_batch(run.model, run.model.block_size))
        drawn = draw(model, prefix, batch, run.model.block_size, options, generator)
        for text, log_prob in _read_names(run, drawn):
            draws += 1
            if text and (options.repeats or text not in seen):
                name = Name(text, run.split.novelty(text), log_prob)
                if not options.new_only or name.novelty == "new":
                    names.append(name)
                seen.add(text)
            if len(names) == options.count:
                break
    return names, draws


def _read_names(run: Run, drawn: Drawn) -> Iterator[tuple[str, float]]:
    """Each row's name, empty if the data could not contain it, and its log-probability."""
    texts = run.vocabulary.decode_rows(drawn.ids.numpy())
    finished = (drawn.ids[:, -1] == EOS).tolist()
    for text, ended, log_prob in zip(texts, finished, drawn.log_probs.tolist(), strict=True):
        yield text if ended and text == normalize(text).strip() else "", log_prob
