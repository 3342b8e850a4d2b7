"""Fits the options that a config leaves open to the number of items and characters.

The rule was found on lists of 50 to 32,000 items in several scripts (docs/log.md).
"""

import math
from dataclasses import replace
from typing import Any

from flashmore.config import DEFAULTS, OPEN, TrainConfig
from flashmore.data.batches import sampled_rows
from flashmore.ranks import world_size
from flashmore.specs import ModelSpec, model_spec
from flashmore.training.corpus import Corpus

LARGE = 20_000
"""From this number of items on, the number of steps no longer grows with the list."""
MUON_STEPS = 1100
"""Steps for such lists with Muon, which needs fewer than AdamW; each takes longer."""
SMOOTHING, SMOOTHING_OF_FEW = 0.4, 0.7
"""Share of the soft targets."""
FEW = 500
"""Below this number of items, n-grams are the better teachers."""
NGRAM_ITEMS, MOST_ITEMS = 0.5, 3000
"""Share of sampled items in each batch, and below how many items there are any."""
LEAST_CONTEXT_GAIN, LEAST_OF_FEW = 0.3, 0.37
"""From this `context_gain` on, items share parts that few of them show, which sampled items teach."""
TEACHERS = 3
"""Teachers of `names-long`; with them it needs no dropout."""
FEWEST_STEPS = 30
EVALUATIONS = 20
"""Evaluations in a run."""


def fit(config: TrainConfig, corpus: Corpus) -> tuple[TrainConfig, tuple[str, ...]]:
    """Choose the options that are still open; those that were given stay.

    Returns:
        A config without open options, and a line that says what was chosen and why.
    """
    missing = [name for name in OPEN if getattr(config, name) is None]
    if not missing:
        return config, ()
    items, spec = corpus.items, model_spec(config.model)
    teachers = config.teachers
    if "teachers" in missing:
        possible = corpus.smoothable and not (config.teacher or config.read_once or world_size() > 1)
        teachers = TEACHERS if config.preset == "names-long" and possible else 0
    distilled = bool(config.teacher or teachers)
    values = {**DEFAULTS, "teachers": teachers}
    if corpus.smoothable and not distilled:
        values |= _of_ngrams(config, corpus, spec)
    values |= spec.training
    if spec.muon:
        values["optimizer"] = "muon"
    if items < LARGE:
        sampled = values["ngram_items"] if config.ngram_items is None else config.ngram_items
        values |= _for_few(items, spec, sampled=sampled > 0)
    if config.preset == "names-long":
        values["dropout"] = 0.0 if distilled else 0.1
    values |= {name: getattr(config, name) for name in OPEN if name not in missing}
    muon = values["optimizer"] == "muon"
    if items >= LARGE and muon and "max_steps" in missing:
        values["max_steps"] = MUON_STEPS
    elif items < LARGE and "max_steps" in missing:
        passes = 3 if items < 5000 else 2
        passes *= 1 if muon else 4  # AdamW needs more steps
        own = values["batch_size"] - sampled_rows(values["batch_size"], values["ngram_items"])
        values["max_steps"] = max(FEWEST_STEPS, round(passes * corpus.positions / own))
    if "warmup_steps" in missing:
        values["warmup_steps"] = min(100, values["max_steps"] // 10)
    if "eval_interval" in missing:
        values["eval_interval"] = max(1, min(250, math.ceil(values["max_steps"] / EVALUATIONS)))
    of_other_models = {"n_layer", "n_embd", "init", "dropout"} - spec.options
    told = [
        f"{name.replace('_', '-')} {_shown(values[name])}" for name in missing if name not in of_other_models
    ]
    return replace(config, **{name: values[name] for name in missing}), (
        f"for {items:,} items: {', '.join(told)}",
    )


def _of_ngrams(config: TrainConfig, corpus: Corpus, spec: ModelSpec) -> dict[str, Any]:
    """What the model learns from n-grams."""
    few = corpus.items < FEW
    share: Any = config.ngram_items
    if share is None:
        possible = config.preset == "names" and config.ngram_smoothing != 0 and config.batch_size != 1
        possible = possible and corpus.items < MOST_ITEMS and "ngram_items" not in spec.training
        least = LEAST_OF_FEW if few else LEAST_CONTEXT_GAIN
        share = NGRAM_ITEMS if possible and corpus.context_gain >= least else 0.0
    smoothing = SMOOTHING_OF_FEW if few and not share else SMOOTHING
    return {"ngram_smoothing": smoothing, "ngram_items": share}


def _for_few(items: int, spec: ModelSpec, *, sampled: bool) -> dict[str, Any]:
    """Short lists are memorised quickly: dropout delays that, and small batches make more updates of them.

    These are too few to find attention to the previous characters, so the model starts with it.
    """
    values: dict[str, Any] = {"batch_size": 32 if items < 1000 else 64}
    if spec.has("init"):
        values["init"] = "previous_token"
    if spec.has("dropout"):
        values["dropout"] = 0.05 if sampled else 0.2 if items < 3000 else 0.1
    if spec.muon:
        values["learning_rate"] = 4e-3 if items < 1000 else 6e-3
    return values


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
