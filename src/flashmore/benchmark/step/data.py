"""What the steps learn from: padded names as in training, or one long stream of them cut into rows."""

from dataclasses import dataclass, replace

import torch

from flashmore.data.batches import Sequences, encode_items
from flashmore.data.vocabulary import EOS
from flashmore.errors import RecipeError
from flashmore.models.config import ModelConfig
from flashmore.specs import model_spec
from flashmore.training.recipe import Recipe
from flashmore.training.setting import Setting, settle


@dataclass(frozen=True)
class Task:
    """One model at one context: everything about a step but the attention."""

    recipe: Recipe
    """Its batch is the one that is used."""
    config: ModelConfig
    data: Sequences
    device: torch.device
    notes: tuple[str, ...] = ()
    """What is not as the recipe says, and why."""


def task_at(recipe: Recipe, context: int | None, *, shrink_batch: bool) -> Task:
    """Read the data and cut it for one context.

    Args:
        recipe: data, model and training parameters.
        context: T, for rows cut from all names of the training part in a stream; None means the data's own,
            one name a row, padded, as in training.
        shrink_batch: take fewer rows where they are longer, so that a step has about as many positions as
            with the data's own context and the recipe's batch.

    Raises:
        DataError: see `flashmore.training.setting.settle`.
        RecipeError: a model without attention, a context below 1 or longer than the stream.
    """
    if not model_spec(recipe.model).attends:
        raise RecipeError("a model with attention", recipe.model, "--model transformer")
    setting = settle(recipe)
    if context is None:
        data = encode_items(
            setting.split.train, setting.vocabulary, setting.config.block_size, setting.device
        )
        return Task(recipe, setting.config, data, setting.device)
    data = stream(setting, context)
    config = replace(setting.config, block_size=context)
    batch = recipe.batch_size
    notes: tuple[str, ...] = ()
    if shrink_batch:
        positions = recipe.batch_size * setting.config.block_size
        batch = max(1, round(positions / context))
        if batch != recipe.batch_size:
            size = f"{batch * context:,} positions a step, against {positions:,}"
            notes = (
                f"batch {batch}, not {recipe.batch_size}, at context {context:,}: {size} "
                "(--batch-size sets it)",
            )
    return Task(replace(recipe, batch_size=batch), config, data, setting.device, notes)


def stream(setting: Setting, context: int) -> Sequences:
    """All names of the training part, one after the other with EOS between them, cut into rows of T.

    Every position is real: what comes after a row's last character is the next row's first.

    Raises:
        RecipeError: a context below 1, or not one row of it in the data.
    """
    names = setting.split.train
    length = sum(map(len, names)) + len(names)
    if not 1 <= context <= length:
        valid = f"1 to {length:,}, the length of all names of the training part one after the other"
        raise RecipeError("a --block-size that the data can fill", f"{context:,}", valid)
    ids = [EOS]
    for name in names:
        ids += setting.vocabulary.encode(name)
        ids.append(EOS)
    flat = torch.tensor(ids, device=setting.device)  # (length + 1,)
    rows = length // context
    return Sequences(
        ids=flat[: rows * context].view(rows, context),  # (N·T,) -> (N, T)
        targets=flat[1 : rows * context + 1].view(rows, context),  # (N·T,) -> (N, T)
        lengths=torch.full((rows,), context, device=setting.device),
    )
