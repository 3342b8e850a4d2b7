"""How much memory is free, and how many sequences a model takes at once.

B batch, H heads, T positions, V vocabulary.
"""

import os
from pathlib import Path

import torch

from flashmore.measuring.environment import memory_bytes
from flashmore.models.config import ModelConfig
from flashmore.specs import backend_spec, model_spec

CGROUP = Path("/sys/fs/cgroup")
LARGEST_TENSOR = 2**24
"""Numbers in the widest tensor without gradients: 64 MiB of float32."""


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now without hurting others.

    On CUDA what the driver calls free; on a CPU what Linux calls available, which counts the page cache, or
    less where a control group sets a limit; half of the main memory where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [free for free in (_available(), left_in_group(CGROUP)) if free is not None]
    return min(known) if known else (memory_bytes() or 2**32) // 2


def left_in_group(group: Path) -> int | None:
    """What the control group (version 2) of this container still allows; None without a limit."""
    try:
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        return max(0, limit - int((group / "memory.current").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def largest_batch(config: ModelConfig, positions: int) -> int:
    """How many sequences of so many positions a model takes at once without gradients.

    Its widest tensor stays within `LARGEST_TENSOR` numbers, unless one sequence alone is larger.
    """
    spec = model_spec(config.model)
    widest = max(config.vocab_size, spec.widest(config))
    if spec.attends and backend_spec(config.attention).materializes_scores:
        widest = max(widest, config.n_head * positions)
    return max(1, LARGEST_TENSOR // (positions * widest))


def kept_bytes(config: ModelConfig, rows: int, positions: int) -> int:
    """What a training step keeps for its backward pass, roughly: activations, logits, and scores."""
    spec = model_spec(config.model)
    numbers = spec.kept(config) + 4 * config.vocab_size
    if spec.attends and backend_spec(config.attention).materializes_scores:
        numbers += 4 * config.n_layer * config.n_head * positions
    return 4 * rows * positions * numbers
