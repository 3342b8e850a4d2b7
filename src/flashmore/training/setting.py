"""What a recipe comes to on this machine: the device, the data's parts, the model's sizes, the attention."""

import sys
from dataclasses import dataclass

import torch

from flashmore.backends.choose import Choice, Problem, choose
from flashmore.data.split import Split, split_words
from flashmore.data.vocabulary import Vocabulary
from flashmore.data.words import read_words
from flashmore.errors import RecipeError
from flashmore.models.config import ModelConfig
from flashmore.specs import model_spec
from flashmore.training.recipe import Recipe


@dataclass(frozen=True)
class Setting:
    """The device, the data's parts and the model's sizes; nothing is built or written yet."""

    device: torch.device
    split: Split
    vocabulary: Vocabulary
    config: ModelConfig
    """Its `attention` is not settled: see `settle_attention`."""


def settle(recipe: Recipe) -> Setting:
    """Read the data and answer what the recipe leaves open.

    Raises:
        DataError, RecipeError: see their docstrings.
    """
    if recipe.mode == "text":
        raise RecipeError("items, one a line", "--mode text", "--mode items, which is the default")
    device = device_named(recipe.device)
    words = read_words(recipe.file, recipe.encoding)
    split = split_words(words, recipe.split, recipe.split_seed)
    vocabulary = Vocabulary.from_items(words.items)
    config = model_config(recipe, vocabulary.size, context=max(map(len, words.items)) + 1)
    return Setting(device, split, vocabulary, config)


def model_config(recipe: Recipe, vocabulary_size: int, context: int) -> ModelConfig:
    """The sizes of the recipe's model on data with this vocabulary and context; its `attention` is open."""
    return ModelConfig(
        model=recipe.model,
        vocab_size=vocabulary_size,
        block_size=context,
        n_layer=recipe.n_layer,
        n_head=recipe.n_head,
        n_embd=recipe.n_embd,
        dropout=recipe.dropout,
        attention_dropout=recipe.attention_dropout,
        activation=recipe.activation,
        bias=recipe.bias,
        tie_weights=recipe.tie_weights,
        init=recipe.init,
    )


def settle_attention(
    name: str, recipe: Recipe, config: ModelConfig, device: torch.device, *, compiled: bool = False
) -> Choice | None:
    """Which backend trains this model here; None for a model without attention.

    Args:
        compiled: whether the step is compiled as a whole.

    Raises:
        BackendUnavailable: the backend called `name` cannot run here.
    """
    if not model_spec(config.model).attends:
        return None
    shape = (recipe.batch_size, config.n_head, config.block_size, config.n_embd // config.n_head)
    dtype = getattr(torch, recipe.precision)
    return choose(name, Problem(shape, dtype, device, recipe.attention_dropout, compiled))


def device_named(name: str) -> torch.device:
    """The device of that name, or with `auto` the best one here.

    Raises:
        RecipeError: the device is not on this machine.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if here["cuda"] else "mps" if here["mps"] else "cpu"
    if not here[name]:
        present = ", ".join(device for device, is_here in here.items() if is_here)
        raise RecipeError(
            f"--device {name}", f"torch {torch.__version__} sees none on {sys.platform}", present
        )
    return torch.device(name)
