"""Samples names from a run, and scores names.

Shape letters: B batch, T positions, V vocabulary.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from numpy.random import RandomState
from torch import nn

from flashmore.data.batches import IGNORE, encode_items
from flashmore.data.items import Novelty
from flashmore.data.text import normalize
from flashmore.data.vocabulary import EOS
from flashmore.errors import DataError, option_of
from flashmore.generation.cache import Decoder, decoder_for
from flashmore.generation.constraints import constraint, nearest
from flashmore.generation.draw import Drawn, draw, random_numbers, require_finite, seed_of
from flashmore.generation.load import load_model, load_ngram, untrained
from flashmore.generation.options import NAMES, GenerateOptions
from flashmore.generation.text import continuations
from flashmore.memory import largest_batch
from flashmore.models.onednn import pack
from flashmore.parallel import ALONE, Ranks
from flashmore.runs import Run

DRAWS_PER_NAME, FEWEST_DRAWS = 100, 20_000
"""Generation stops after this many draws per requested name, but not before the second number."""
TOLD = 10
"""Most names that an error lists."""
SAMPLES, SAMPLE_CHARACTERS = 8, 120
"""How much is drawn at a checkpoint."""
_SMALLEST_BATCH = 32


@dataclass(frozen=True)
class Name:
    """A name and its log-probability."""

    text: str
    """In the form of the data (Unicode's NFC)."""
    novelty: Novelty
    log_prob: float
    """Natural logarithm of the probability of the whole name, prefix and EOS included, at temperature 1
    and without top-k or top-p."""


@dataclass(frozen=True)
class Scored(Name):
    """A name and its log-probability."""

    log_prob_per_char: float
    """`log_prob` divided by the number of characters plus one, since EOS counts: minus the name's loss."""


@dataclass(frozen=True)
class Near(Name):
    """A name, and the closest one of the training part."""

    nearest: str
    distance: int
    """Levenshtein distance: insertions, deletions and substitutions of a character."""


@dataclass(frozen=True)
class Tally:
    """Where the drawn names come from: each draw that gave a name counts, repeated or rejected ones too."""

    drawn: int
    new: int
    """In no part of the data."""
    copies: int
    """In the training part."""
    copies_up_to_case: int
    """In the training part, but in other upper and lower case."""
    held_out: int
    """In the validation or test part, but not in the training part."""

    def __str__(self) -> str:
        case = f" ({self.copies_up_to_case:,} more ignoring case)" if self.copies_up_to_case else ""
        held_out = f", {self.held_out:,} held out" if self.held_out else ""
        copies = "1 copy" if self.copies == 1 else f"{self.copies:,} copies"
        return f"{self.drawn:,} drawn: {self.new:,} new, {copies}{case}{held_out}"


@dataclass(frozen=True)
class Generated:
    """Names in the order of drawing."""

    names: list[Name]
    """With the option `nearest`, each a `Near`."""
    tally: Tally | None
    """None for a pack without the items."""
    draws: int
    """Number of draws, including those that gave no name."""
    complete: bool
    """Whether there are as many names as requested."""
    seed: int
    """Seed that reproduces the names."""


def generate(
    run: Run, options: GenerateOptions, device: torch.device | str = "cpu", ranks: Ranks = ALONE
) -> Generated:
    """Draw names from the best weights of a run, or else the last.

    A draw gives no name if it has not reached EOS when the context is full (so every log-probability is that
    of a whole name), if the data could not contain it (empty, with surrounding spaces, or not in NFC), if it
    was drawn before (unless `repeats`), if the data contains it (with `new_only`), or if an option excludes
    it. Names are thus distributed as the model's own, given the options; nothing changes the temperature.

    Several ranks share the draws; the names are the same, on every rank.

    Raises:
        DataError: an option has characters outside the vocabulary, or a file that cannot be read.
        ConfigError: no name can fulfil the options, or the device cannot be used here.
        RunError: the run has no checkpoint, or a damaged one, or is on one long text.
    """
    run.require_items("to draw names")
    for option in ("new_only", "nearest", "ngram"):
        if getattr(options, option):
            run.require_training_items(option_of(option))
    longest, fulfils = constraint(options, run.vocabulary, run.model.block_size - 1)
    prefix = run.vocabulary.encode(normalize(options.prefix).lstrip())  # as no item starts with a space
    decoder = decoder_for(load_ngram(run) if options.ngram else pack(load_model(run, device)))
    count = options.count or NAMES
    seed = int((ranks.tell({"seed": seed_of(options)}) or {})["seed"])
    numbers = random_numbers(seed)
    names: list[Name] = []
    seen: set[str] = set()
    folded = {item.casefold() for item in run.split.train}
    origins: Counter[str] = Counter()
    draws, limit = 0, options.max_draws or max(DRAWS_PER_NAME * count, FEWEST_DRAWS)
    while len(names) < count and draws < limit:
        # A small batch takes as long as a single draw, and few names fulfil some options. The sizes of the
        # batches do not change the names.
        batch = max(count - len(names), _SMALLEST_BATCH, draws)
        batch = min(batch, limit - draws, largest_batch(run.model, longest + 1))
        drawn = _drawn(decoder, prefix, batch, longest + 1, options, numbers, ranks)
        texts = run.vocabulary.decode_rows(drawn.ids.numpy())
        finished = (drawn.ids[:, -1] == EOS).tolist()
        for text, ended, log_prob in zip(texts, finished, drawn.log_probs.tolist(), strict=True):
            draws += 1
            usual = ended and bool(text) and text == normalize(text).strip()  # as the data could contain it
            if not usual:
                continue
            name = Name(text, run.split.novelty(text), log_prob)
            origins[name.novelty] += 1
            origins["case"] += name.novelty != "train" and text.casefold() in folded
            fresh = options.repeats or text not in seen
            if fresh and (not options.new_only or name.novelty == "new") and fulfils(text):
                names.append(name)
                if len(names) == count:
                    break
            seen.add(text)
    if options.nearest:
        found = nearest([name.text for name in names], run.split.train)
        names = [
            Near(**asdict(name), nearest=near, distance=far)
            for name, (near, far) in zip(names, found, strict=True)
        ]
    held_out = origins["validation"] + origins["test"]
    total = origins["new"] + origins["train"] + held_out
    tally = Tally(total, origins["new"], origins["train"], origins["case"], held_out)
    return Generated(names, tally if run.split.train else None, draws, len(names) == count, seed)


def _drawn(
    decoder: Decoder,
    prefix: Sequence[int],
    count: int,
    context: int,
    options: GenerateOptions,
    numbers: RandomState,
    ranks: Ranks,
) -> Drawn:
    """As `draw`, by all ranks together."""
    if not ranks.connected:
        return draw(decoder, prefix, count, context, options, numbers)
    each = -(-count // ranks.size)
    rows = slice(ranks.rank * each, (ranks.rank + 1) * each)
    ids = torch.zeros(count, context, dtype=torch.int64)
    log_probs = torch.zeros(count, dtype=torch.float64)
    if len(ids[rows]):  # fewer draws than ranks
        own = draw(decoder, prefix, count, context, options, numbers, rows)
        ids[rows], log_probs[rows] = own.ids, own.log_probs
    else:
        numbers.random_sample((count, context - len(prefix)))
    return Drawn(ranks.total(ids), ranks.total(log_probs))


def samples(run: Run, trained: nn.Module) -> list[str]:
    """A few names, or the beginning of a text, of a model in training, which is not changed."""
    model = untrained(run)
    model.load_state_dict(trained.state_dict())
    model.eval()
    if run.text is None:
        context, options = run.model.block_size, GenerateOptions()
        drawn = draw(decoder_for(model), (), 2 * SAMPLES, context, options, random_numbers(0))
        return list(filter(None, run.vocabulary.decode_rows(drawn.ids.numpy())))[:SAMPLES]
    ids = continuations(decoder_for(model), [0], SAMPLE_CHARACTERS, GenerateOptions(), [0])
    return ["".join(run.vocabulary.characters[number] for (number,) in ids)]


def score(run: Run, names: Sequence[str], device: torch.device | str = "cpu") -> list[Scored]:
    """Each name's log-probability under the best weights of a run, or else the last.

    Raises:
        DataError: a name is empty, too long for the model, or has characters outside the vocabulary; the
            first such names are listed.
        RunError, ConfigError: as `generate`.
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
        ids, targets = sequences.ids[:, :longest].long(), sequences.targets[:, :longest].long()  # (B, T)
        logits = model(ids).transpose(1, 2)  # (B, V, T)
        losses = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")  # (B, T)
        sums = losses.cpu().double().sum(1).neg()
        require_finite(sums)
        values += sums.tolist()
    return values


def _require_scorable(run: Run, texts: Sequence[str]) -> None:
    if problems := [found for text in texts if (found := why_unscorable(run, text))]:
        wanted = f"names of 1 to {run.model.block_size - 1} characters, all in the model's vocabulary"
        more = f"; and {len(problems) - TOLD:,} more" if len(problems) > TOLD else ""
        raise DataError(wanted, "; ".join(problems[:TOLD]) + more, run.vocabulary.summary)


def why_unscorable(run: Run, text: str) -> str | None:
    """Why a text in NFC is none that a run's model can generate; None if it can."""
    quoted = repr(text if len(text) <= 40 else text[:40] + "…")
    if not text:
        return "an empty name"
    if len(text) >= run.model.block_size:
        return f"{quoted} of {len(text)} characters"
    try:
        run.vocabulary.encode(text)
    except DataError as error:
        return f"{quoted}: {error.found}"
    return None
