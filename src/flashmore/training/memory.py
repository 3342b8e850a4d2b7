"""Out-of-memory handling: which batch or context would fit."""

import gc

import torch
from torch import Tensor

from flashmore.errors import DataError, TrainingFailed, is_out_of_memory
from flashmore.memory import free_bytes, kept_bytes
from flashmore.training.step import mean_loss
from flashmore.training.trainer import Trainer


def out_of_memory(trainer: Trainer, error: Exception) -> TrainingFailed:
    """The error for a step that did not fit, naming the largest batch or context that does.

    Found by trial: forward and backward passes over a half, a quarter, … of the items, then of one item's
    positions, starting from an estimate. Nothing is updated.
    """
    config = trainer.config
    found = str(error).partition("\n")[0] or type(error).__name__
    rows, positions = trainer.rows, trainer.model_config.block_size
    sizes = f"{rows:,} rows of {positions:,} positions"
    # Other ranks would not take part in a trial.
    while rows > 1 and not trainer.ranks.connected:
        rows //= 2
        if _fits(trainer, rows, positions):
            batch = config.batch_size // trainer.rows * rows
            valid = f"--batch-size {batch}, which fits"
            if not config.slices:
                valid += ", or a larger --grad-accum for the same batch"
            return TrainingFailed(f"memory for {sizes}", found, valid)
    while positions > 1 and config.mode == "text" and not trainer.ranks.connected:
        positions //= 2
        if _fits(trainer, 1, positions):
            valid = f"--batch-size 1 --block-size {positions}, which fits"
            return TrainingFailed(f"memory for {sizes}", found, valid)
    valid = "shorter items, fewer --n-layer or --n-embd, or a machine with more memory"
    if trainer.ranks.connected:
        valid = "a smaller --batch-size, a larger --grad-accum, --activation-checkpointing or --parallel fsdp"
    return TrainingFailed(f"memory for {sizes}", found, valid)


def require_memory(trainer: Trainer, *, advise: bool = True) -> None:
    """Refuse a step on a CPU that would need far more memory than there is.

    Operating systems overcommit memory and kill the process when it is used, so no error could be raised.

    Args:
        advise: whether to find out which sizes would fit; a resumed run cannot change them.

    Raises:
        TrainingFailed: half of the step's estimated memory exceeds the free memory; names what fits.
    """
    config, context = trainer.config, trainer.model_config.block_size
    checkpointing = config.activation_checkpointing
    needed = kept_bytes(trainer.model_config, trainer.rows, context, checkpointing=checkpointing)
    free = free_bytes(trainer.device)
    if trainer.device.type == "cpu" and needed / 2 > free:
        found = f"about {needed / 2**30:,.0f} GiB needed, {free / 2**30:,.1f} GiB free"
        if not advise:
            sizes = f"{trainer.rows:,} rows of {context:,} positions"
            raise TrainingFailed(f"memory for {sizes}", found, "a machine with more memory")
        raise out_of_memory(trainer, MemoryError(found))


def require_memory_for_items(count: int, context: int) -> None:
    """Refuse items that would exceed the free memory, at a row of `context` positions each.

    Raises:
        DataError: half of the memory they need exceeds the free memory.
    """
    needed, free = 2 * 2 * count * context, free_bytes(torch.device("cpu"))
    if needed / 2 > free:
        raise DataError(
            f"memory for {count:,} items in rows of {context:,} positions",
            f"about {needed / 2**30:,.0f} GiB needed, {free / 2**30:,.1f} GiB free",
            "the file without its longest items: the longest one sets the length of all rows",
        )


def _fits(trainer: Trainer, rows: int, positions: int) -> bool:
    checkpointing = trainer.config.activation_checkpointing
    needed = kept_bytes(trainer.model_config, rows, positions, checkpointing=checkpointing)
    if needed > free_bytes(trainer.device) / 4:
        return False
    gc.collect()
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()
    ids = torch.zeros(rows, positions, dtype=torch.int64, device=trainer.device)
    try:
        with trainer.step.precision():
            loss: Tensor = mean_loss(trainer.model(ids), ids)
        loss.backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        trainer.model.zero_grad(set_to_none=True)
    return True
