"""When memory does not suffice for a step: what would fit."""

import gc
import os

import torch
from torch import Tensor

from flashmore.errors import DataError, TrainingFailed, is_out_of_memory
from flashmore.training.batch import Batch
from flashmore.training.loss import mean_loss
from flashmore.training.trainer import Trainer


def out_of_room(trainer: Trainer, error: Exception) -> TrainingFailed:
    """The message for a step that did not fit, with the largest batch or context that did.

    It is tried: a forward and a backward pass over a half, a quarter, … of the items, then of one item's
    positions, from where an estimate leaves room. Nothing is updated.
    """
    recipe = trainer.recipe
    found = str(error).partition("\n")[0]
    sizes = f"a batch of {recipe.batch:,} of {trainer.config.context:,} positions"
    rows, positions = recipe.batch, trainer.config.context
    while rows > 1:
        rows //= 2
        if _fits(trainer, rows, positions):
            return TrainingFailed(f"memory for {sizes}", found, f"--batch {rows}, which was tried and fits")
    while positions > 1 and recipe.mode == "text":
        positions //= 2
        if _fits(trainer, 1, positions):
            valid = f"--batch 1 --context {positions}, which was tried and fits"
            return TrainingFailed(f"memory for {sizes}", found, valid)
    valid = "shorter items, fewer --layers or --channels, or a machine with more memory"
    return TrainingFailed(f"memory for {sizes}", found, valid)


def require_room(trainer: Trainer, *, advise: bool = True) -> None:
    """Refuse a step on a CPU that would need far more memory than there is.

    Systems promise memory that they do not have, and end the process when it is used: no error could be told.

    Args:
        trainer: what is to make the steps.
        advise: whether to try which sizes would fit; a run that goes on cannot change them.

    Raises:
        TrainingFailed: half of what the step needs by an estimate is more than is free; it names what fits.
    """
    recipe, context = trainer.recipe, trainer.config.context
    needed, free = _estimated_bytes(trainer, recipe.batch, context), _free_bytes(trainer.device)
    if trainer.device.type == "cpu" and needed / 2 > free:
        found = f"about {needed / 2**30:,.0f} GiB needed, {free / 2**30:,.1f} GiB free"
        if not advise:
            sizes = f"a batch of {recipe.batch:,} of {context:,} positions"
            raise TrainingFailed(f"memory for {sizes}", found, "a machine with more memory")
        raise out_of_room(trainer, MemoryError(found))


def require_room_for_items(count: int, context: int) -> None:
    """Refuse items that would take more memory than is free: a row of `context` positions for each.

    Raises:
        DataError: half of what they need is more than is free.
    """
    needed, free = 2 * 8 * count * context, _free_bytes(torch.device("cpu"))
    if needed / 2 > free:
        raise DataError(
            f"memory for {count:,} items in rows of {context:,} positions",
            f"about {needed / 2**30:,.0f} GiB needed, {free / 2**30:,.1f} GiB free",
            "the file without its longest items, because the longest decides the length of all rows",
        )


def _fits(trainer: Trainer, rows: int, positions: int) -> bool:
    if _estimated_bytes(trainer, rows, positions) > _free_bytes(trainer.device) / 4:
        return False
    gc.collect()
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()
    ids = torch.zeros(rows, positions, dtype=torch.int64, device=trainer.device)
    try:
        _pass(trainer, Batch(ids, ids))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        trainer.model.zero_grad(set_to_none=True)
    return True


def _pass(trainer: Trainer, batch: Batch) -> None:
    with trainer.step.precision():
        loss: Tensor = mean_loss(trainer.model(batch.ids), batch.targets)
    loss.backward()  # type: ignore[no-untyped-call]


def _estimated_bytes(trainer: Trainer, rows: int, positions: int) -> float:
    """What a step keeps for its backward pass, roughly: some thirty widths a layer, logits, and scores."""
    config = trainer.config
    width = 30 * config.layers * config.channels + 4 * config.vocabulary_size
    if config.model == "mlp":
        width += 2 * config.context * config.channels
    scores = 4 * config.layers * config.heads * positions if config.attention in ("manual", "math") else 0
    return 4.0 * rows * positions * (width + scores)


def _free_bytes(device: torch.device) -> float:
    """Memory that nothing uses; a CPU's is overcommitted, so that trying more could end the process."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # systems that do not tell
        return 2.0**31
