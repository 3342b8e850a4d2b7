"""Continues a text, in one or several streams that are computed as a batch.

Shape letters: B streams, T positions, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashmore.data.text import normalize
from flashmore.errors import ConfigError, RunError
from flashmore.generation.cache import Decoder, decoder_for
from flashmore.generation.draw import next_probabilities, pick, random_numbers, require_finite, seed_of
from flashmore.generation.load import load_model
from flashmore.generation.options import GenerateOptions
from flashmore.models.onednn import pack
from flashmore.runs import Run

LONGEST = 10**7
"""Most characters of all sampled texts together."""
_NUMBERS = 64
"""Random numbers of a stream that are drawn at once."""


@dataclass(frozen=True)
class TextSamples:
    """Sampled texts, each after the same prefix, which is normalised like them."""

    prefix: str
    texts: list[str]
    seed: int
    """Seed that reproduces the first text; those of the others are the following numbers."""


@dataclass(frozen=True)
class TextStreams:
    """The same, while it is sampled."""

    prefix: str
    characters: Iterator[tuple[str, ...]]
    """The next character of each text."""
    seed: int


def continue_text(
    run: Run,
    options: GenerateOptions,
    length: int,
    device: torch.device | str = "cpu",
    *,
    stride: int | None = None,
) -> TextSamples:
    """Sample texts after a prefix from the best weights of a run, or else the last.

    Each character is conditioned on all characters before it, until the context, T characters, is full; a
    model with a KV cache computes one position for each. Then the window moves by `stride` characters, by
    default half the context with a KV cache and 1 without: all positions are computed again, since each
    changes, and with a cache the next `stride` - 1 characters cost one position each. Every character is
    thus conditioned on the last T + 1 - `stride` to T; with a stride of 1 always on T, as in nanoGPT's
    `sample.py`. Without a prefix the model first sees one line ending, or else the text's first character in
    code point order, which is not part of the sample.

    Of the options, `count`, `prefix`, `temperature`, `top_k`, `top_p` and `seed` apply to text. Text i,
    counted from 0, has the seed `seed` + i (modulo 2⁶³), so it does not depend on the others.

    Raises:
        DataError: the prefix has characters outside the vocabulary.
        ConfigError: a length below 1, more than 10 million characters in all, a stride outside 1 to T, or the
            device cannot be used here.
        RunError: the run is on items or on ids without characters, has no checkpoint, or a damaged one.
    """
    made = stream_text(run, options, length, device, stride=stride)
    rows = list(made.characters)
    texts = ["".join(row[stream] for row in rows) for stream in range(options.count or 1)]
    return TextSamples(made.prefix, texts, made.seed)


def stream_text(
    run: Run,
    options: GenerateOptions,
    length: int,
    device: torch.device | str = "cpu",
    *,
    stride: int | None = None,
) -> TextStreams:
    """The same, one character after the other."""
    if run.text is None or run.text.kind != "characters":
        found = "a run on items" if run.text is None else "a run on ids, without their characters"
        raise RunError(
            f"a run on a text at {run.path}", found, "a run made by `flashmore train FILE --mode text`"
        )
    count, context, characters = options.count or 1, run.model.block_size, run.vocabulary.characters
    if not 1 <= length <= LONGEST // count:
        valid = f"a whole number from 1 to {LONGEST // count:,}" if count <= LONGEST else "a smaller --count"
        found = f"{length} characters of each of {count} texts" if count > 1 else str(length)
        raise ConfigError("a valid --length", found, valid)
    if stride is not None and not 1 <= stride <= context:
        valid = f"a whole number from 1 to the model's context, {context}"
        raise ConfigError("a valid --stride", str(stride), valid)
    prefix = normalize(options.prefix)
    ids = [number - 1 for number in run.vocabulary.encode(prefix)]  # from 0: a long text has no BOS
    ids = (ids or [characters.index("\n") if "\n" in characters else 0])[-context:]
    seed = seed_of(options)
    seeds = [(seed + stream) % 2**63 for stream in range(count)]
    decoder = decoder_for(pack(load_model(run, device)))
    drawn = continuations(decoder, ids, length, options, seeds, stride)
    return TextStreams(prefix, (tuple(characters[number] for number in row) for row in drawn), seed)


@torch.inference_mode()
def continuations(
    decoder: Decoder,
    ids: Sequence[int],
    length: int,
    options: GenerateOptions,
    seeds: Sequence[int],
    stride: int | None = None,
) -> Iterator[list[int]]:
    """The next id of each stream, `length` times.

    Args:
        decoder: the model's.
        ids: what all streams begin with: at least one, and at most as many as the model's context.
        length: characters of each stream.
        options: temperature, top-k and top-p.
        seeds: of the B streams.
        stride: as in `continue_text`.
    """
    context, device, count = decoder.model.config.block_size, decoder.device, len(seeds)
    stride = decoder.stride if stride is None else stride
    window = [torch.full((count,), number) for number in ids]  # T × (B,)
    logits = decoder.start(torch.stack(window, dim=1).to(device))  # (B, V)
    for left, numbers in zip(range(length - 1, -1, -1), _numbers(seeds), strict=False):
        scores = logits.cpu().double()  # (B, V)
        require_finite(scores)
        chosen = pick(next_probabilities(scores, options), numbers)  # (B,)
        yield chosen.tolist()
        if not left:
            break
        window.append(chosen)
        if len(window) <= context:
            logits = decoder.extend(chosen.to(device))
        else:
            del window[:stride]
            logits = decoder.start(torch.stack(window, dim=1).to(device))


def _numbers(seeds: Sequence[int]) -> Iterator[Tensor]:
    """The next random number of each stream, (B,) float64, without end."""
    sources = [random_numbers(seed) for seed in seeds]
    while True:
        drawn = [torch.from_numpy(source.random_sample(_NUMBERS)) for source in sources]
        yield from torch.stack(drawn, dim=1)  # (_NUMBERS, B)
