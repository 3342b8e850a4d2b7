"""What this process may use: free memory, the sequences of a batch that fit in it, and CPUs.

B batch, H heads, T positions, V vocabulary.
"""

from dataclasses import replace
from pathlib import Path

import psutil
import torch

from flashmore.models.config import ModelConfig
from flashmore.ranks import local_world_size
from flashmore.specs import backend_spec, model_spec

CGROUP = Path("/sys/fs/cgroup")
LARGEST_TENSOR = 2**24
"""Most elements of the widest tensor without gradients: 64 MiB of float32."""


def free_bytes(device: torch.device) -> int:
    """Memory available now, in bytes.

    On CUDA, the driver's free memory; on a CPU, what is available without swapping, page cache included, or
    less if a control group sets a limit; the processes of torchrun on this machine share it.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available, left = psutil.virtual_memory().available, left_in_group(CGROUP)
    return (available if left is None else min(available, left)) // local_world_size()


def left_in_group(group: Path) -> int | None:
    """Bytes left within the limit of this container's control group (version 2); None without a limit."""
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return max(0, limit - used)


def cpu_quota(group: Path) -> int | None:
    """CPUs that this container's control group (version 2) allows, rounded up; None without a limit."""
    try:
        quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return None


def largest_batch(config: ModelConfig, positions: int) -> int:
    """Largest batch of sequences with this many positions, without gradients.

    The widest tensor stays within `LARGEST_TENSOR` elements, unless one sequence alone exceeds it.
    """
    widest = max(config.vocab_size, model_spec(config.model).widest(config), _scores(config, positions))
    return max(1, LARGEST_TENSOR // (positions * widest))


def kept_bytes(config: ModelConfig, rows: int, positions: int, *, checkpointing: bool = False) -> int:
    """Rough number of bytes that a training step keeps for the backward pass: activations, logits, scores.

    Args:
        checkpointing: whether a Transformer keeps only the inputs of its blocks, and the activations of one.
    """
    if checkpointing:
        inputs = 4 * rows * positions * config.n_layer * config.n_embd
        return inputs + kept_bytes(replace(config, n_layer=1), rows, positions)
    logits, scores = 4 * config.vocab_size, 4 * config.n_layer * _scores(config, positions)
    return 4 * rows * positions * (model_spec(config.model).kept(config) + logits + scores)


def _scores(config: ModelConfig, positions: int) -> int:
    """Attention weights per position and layer, if they are materialised."""
    written = model_spec(config.model).attends and backend_spec(config.attention).materializes_scores
    return config.n_head * positions if written else 0
