"""`flashmore choose`: measure the fastest attention backend on this machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flashmore.cli.bench import show
from flashmore.cli.outputs import require_writable
from flashmore.cli.parse import parse
from flashmore.errors import ConfigError
from flashmore.terminal import say, write_json


@dataclass(frozen=True)
class Choose:
    """Measure which backend computes causal self-attention fastest here, and cache the answer.

    `--attention auto` uses the same answer. It is cached for this device, torch release, number of threads,
    dtype, shape and dropout, in $FLASHMORE_CACHE or the user's cache folder.
    """

    batch_size: int = 32
    """Number of sequences."""
    n_head: int = 4
    """Attention heads."""
    length: int = 16
    """Positions per sequence."""
    head_dim: int = 16
    """Channels per head."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of q, k and v."""
    dropout: float = 0.0
    """Probability of dropping an attention weight."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to use; `auto` selects a GPU if there is one."""
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's default."""
    fresh: bool = False
    """Measure again even if the answer is cached."""
    out: Path | None = None
    """Write the record to this file."""
    json: bool = False
    """Print the record, one JSON document, on stdout and nothing else."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "n_head", "length", "head_dim"):
            if (size := getattr(self, name)) < 1:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"a sensible {option}", f"{size}", "a whole number from 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError("a sensible --dropout", str(self.dropout), "at least 0 and below 1")


def main(argv: Sequence[str]) -> int:
    """Run `flashmore choose`."""
    record, command = measured(argv)
    if command.out is not None:
        from flashmore.measuring.result import write_record

        write_record(record, command.out)
    if command.json:
        write_json(record)
    else:
        show(record)
        if not record["measuring_s"]:
            say("as measured before; --fresh measures again")
    return 0


def measured(argv: Sequence[str]) -> tuple[dict[str, Any], Choose]:
    """The record that these arguments ask for, and the arguments."""
    command = parse(Choose, "choose", argv)
    require_writable("--out", command.out)

    import torch

    from flashmore.backends.choose import Problem, choose
    from flashmore.measuring.result import make_record
    from flashmore.training.resolve import resolve_device

    if command.threads:
        torch.set_num_threads(command.threads)
    shape = (command.batch_size, command.n_head, command.length, command.head_dim)
    device = resolve_device(command.device)
    problem = Problem(shape, getattr(torch, command.dtype), device, command.dropout)
    choice = choose("auto", problem, fresh=command.fresh or command.out is not None)
    if choice.seconds:
        say(f"{choice.backend}: {choice.why}")
    body = {
        "warnings": [],
        "chosen": choice.backend,
        "measuring_s": choice.seconds,
        "problem": problem.key(),
        "candidates": [asdict(candidate) for candidate in choice.candidates],
    }
    return make_record("choose", device, body), command
