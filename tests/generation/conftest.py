from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flashmore.data.items import Split
from flashmore.data.vocabulary import Vocabulary
from flashmore.models.config import ModelConfig
from flashmore.models.registry import build
from flashmore.runs import Checkpoint, Run, Settings, State

NO_ITEMS = Split(train=("",), validation=(), test=(), leak_share=None)
"""No item that a model could draw."""


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run of a model with random weights."""
    made = 0

    def make(model: str, characters: str, context: int, split: Split = NO_ITEMS, **sizes: object) -> Run:
        nonlocal made
        made += 1
        vocabulary = Vocabulary.from_items(characters)
        config = ModelConfig(model, vocabulary.size, context, **sizes)  # type: ignore[arg-type]
        settings = Settings({}, {}, config, vocabulary, split, None, {})
        with Run.create(tmp_path / f"run {made}", settings) as run:
            run.begin(Checkpoint(build(config, seed=1).state_dict(), {}, State(0, 10)))
        return run

    return make


@pytest.fixture
def make_bigram(make_run: Callable[..., Run]) -> Callable[..., Run]:
    """Makes a run of a Bigram with given probabilities: a row for BOS, then one for each character."""

    def make(rows: list[list[float]], characters: str, context: int, split: Split = NO_ITEMS) -> Run:
        run = make_run("bigram", characters, context, split)
        logits: Tensor = torch.tensor(rows).clamp_min(1e-30).log()
        run.save_checkpoint(Checkpoint({"logits": logits}, {}, State(0, 10)))
        return run

    return make
