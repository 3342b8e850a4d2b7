"""Training on one long text: what a recipe comes to, and the ids of a run."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from flashmore.data.long_text import LongText, read_long_text
from flashmore.data.tokens import Ids
from flashmore.data.vocabulary import Vocabulary
from flashmore.data.windows import Windows
from flashmore.errors import RecipeError, RunError
from flashmore.files import disk_errors
from flashmore.models.config import ModelConfig
from flashmore.runs import Run
from flashmore.specs import model_spec
from flashmore.training.recipe import Recipe
from flashmore.training.setting import device_named, model_config

CONTEXT = 256
"""Of a recipe that names none."""
LARGEST_WIDTH = 2**16
"""Numbers of the widest activation at a position."""


@dataclass(frozen=True)
class TextSetting:
    """A recipe on a long text read and measured; nothing is built or written yet."""

    device: torch.device
    text: LongText
    vocabulary: Vocabulary
    """The text's characters; their ids begin at 0, for a long text has no BOS and EOS."""
    config: ModelConfig
    """Its `attention` is not settled: see `flashmore.training.setting.settle_attention`."""


def settle_text(recipe: Recipe) -> TextSetting:
    """Read the text once and answer what the recipe leaves open.

    Raises:
        DataError, RecipeError, BackendUnavailable: see their docstrings.
    """
    device = device_named(recipe.device)
    context = recipe.block_size or CONTEXT
    text, vocabulary, size = read_long_text(
        recipe.file, recipe.encoding, recipe.split, context, recipe.vocab_size
    )
    config = model_config(recipe, size, context)
    width = model_spec(recipe.model).widest
    widest = width(config)
    if widest > LARGEST_WIDTH and widest > width(replace(config, block_size=1)):
        raise RecipeError(
            f"at most {LARGEST_WIDTH:,} numbers a position in an activation",
            f"{widest:,} in the {recipe.model} with --block-size {context:,} and --n-embd {recipe.n_embd:,}",
            "a shorter --block-size, fewer --n-embd, or another --model",
        )
    return TextSetting(device, text, vocabulary, config)


def open_text(run: Run, device: torch.device) -> Windows:
    """The training part's windows of a run on a long text; a damaged store of its ids is made again.

    Raises:
        DataError: what the ids are made from is needed, and is gone or no longer the same.
        StorageError: the disk refused.
    """
    if run.text is None:
        raise RunError("a run on one long text", f"{run.path}, a run on items", "a run of --mode text")
    with disk_errors(f"to keep the ids of the text in {run.path}", run.path):
        ids = run.text.ids(run.path, run.vocabulary)
    windows = windows_of(run, ids, "train", device)
    assert windows is not None, "the training part is never empty"
    return windows


def windows_of(run: Run, ids: Ids, part: str, device: torch.device) -> Windows | None:
    """The windows of one part of a run's text; None for an empty part."""
    assert run.text is not None
    start, stop = getattr(run.text.parts, part)
    return Windows(ids, (start, stop), run.model.block_size, device) if stop > start else None


def random_windows(config: ModelConfig, device: torch.device) -> Windows:
    """Windows of random ids: what steps are timed on before the text's own ids are written."""
    size = 16 * (config.block_size + 1)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, size=size).astype(np.uint16)
    return Windows(ids, (0, size), config.block_size, device)
