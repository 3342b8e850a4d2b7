"""When memory does not suffice for a step: what would fit."""

import gc

import torch
from torch import Tensor

from flashmore.errors import DataError, TrainingFailed, is_out_of_memory
from flashmore.memory import free_bytes, kept_bytes
from flashmore.training.dataset import Batch
from flashmore.training.step import mean_loss
from flashmore.training.trainer import Trainer


def out_of_memory(trainer: Trainer, error: Exception) -> TrainingFailed:
    """The message for a step that did not fit, with the largest batch or context that did.

    It is tried: a forward and a backward pass over a half, a quarter, … of the items, then of one item's
    positions, from where an estimate leaves room. Nothing is updated.
    """
    config = trainer.config
    found = str(error).partition("\n")[0]
    sizes = f"a batch of {config.batch_size:,} of {trainer.model_config.block_size:,} positions"
    rows, positions = config.batch_size, trainer.model_config.block_size
    while rows > 1:
        rows //= 2
        if _fits(trainer, rows, positions):
            return TrainingFailed(
                f"memory for {sizes}", found, f"--batch-size {rows}, which was tried and fits"
            )
    while positions > 1 and config.mode == "text":
        positions //= 2
        if _fits(trainer, 1, positions):
            valid = f"--batch-size 1 --block-size {positions}, which was tried and fits"
            return TrainingFailed(f"memory for {sizes}", found, valid)
    valid = "shorter items, fewer --n-layer or --n-embd, or a machine with more memory"
    return TrainingFailed(f"memory for {sizes}", found, valid)


def require_memory(trainer: Trainer, *, advise: bool = True) -> None:
    """Refuse a step on a CPU that would need far more memory than there is.

    Systems promise memory that they do not have, and end the process when it is used: no error could be told.

    Args:
        trainer: what is to make the steps.
        advise: whether to try which sizes would fit; a run that goes on cannot change them.

    Raises:
        TrainingFailed: half of what the step needs by an estimate is more than is free; it names what fits.
    """
    config, context = trainer.config, trainer.model_config.block_size
    needed, free = kept_bytes(trainer.model_config, config.batch_size, context), free_bytes(trainer.device)
    if trainer.device.type == "cpu" and needed / 2 > free:
        found = f"about {needed / 2**30:,.0f} GiB needed, {free / 2**30:,.1f} GiB free"
        if not advise:
            sizes = f"a batch of {config.batch_size:,} of {context:,} positions"
            raise TrainingFailed(f"memory for {sizes}", found, "a machine with more memory")
        raise out_of_memory(trainer, MemoryError(found))


def require_memory_for_items(count: int, context: int) -> None:
    """Refuse items that would take more memory than is free: a row of `context` positions for each.

    Raises:
        DataError: half of what they need is more than is free.
    """
    needed, free = 2 * 8 * count * context, free_bytes(torch.device("cpu"))
    if needed / 2 > free:
        raise DataError(
            f"memory for {count:,} items in rows of {context:,} positions",
            f"about {needed / 2**30:,.0f} GiB needed, {free / 2**30:,.1f} GiB free",
            "the file without its longest items, because the longest decides the length of all rows",
        )


def _fits(trainer: Trainer, rows: int, positions: int) -> bool:
    if kept_bytes(trainer.model_config, rows, positions) > free_bytes(trainer.device) / 4:
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
