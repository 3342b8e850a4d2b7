"""`flashmore choose`: measure the fastest attention backend on this machine."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flashmore.cli.bench import show
from flashmore.cli.model_config import heads_of
from flashmore.cli.parse import parse, require_writable, value_of
from flashmore.errors import ConfigError
from flashmore.terminal import say, write_json


@dataclass(frozen=True)
class Choose:
    """Measure which backend computes attention fastest here, and cache the answer.

    `--attention auto` uses the same answer. It is cached for this device, torch release, number of threads,
    dtype, shape and so on, in $FLASHMORE_CACHE or the user's cache folder.
    """

    from_config: Path | None = None
    """A Hugging Face model's config.json: its heads and channels per head become the defaults."""
    batch_size: int = 32
    """Number of sequences."""
    n_head: int = 4
    """Query heads."""
    n_kv_head: int | None = None
    """Key and value heads, which are repeated for each call; none means as many as query heads."""
    length: int = 16
    """Number of queries."""
    source_length: int | None = None
    """Number of keys; none means as many as queries. --length 1 is decoding."""
    head_dim: int = 16
    """Channels per head."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of q, k and v."""
    full: bool = False
    """Every query sees every key; the default is causal."""
    mask: bool = False
    """With a boolean mask of queries by keys; needs --full."""
    passes: Literal["both", "forward", "backward"] = "both"
    """Time forward and backward, inference, or backward alone."""
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
        for name in ("batch_size", "n_head", "n_kv_head", "length", "source_length", "head_dim"):
            if (size := getattr(self, name)) is not None and size < 1:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"a sensible {option}", f"{size}", "a whole number from 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError("a sensible --dropout", str(self.dropout), "at least 0 and below 1")
        if self.n_head % (self.n_kv_head or 1):
            found = f"{self.n_kv_head} for {self.n_head} query heads"
            raise ConfigError("a --n-kv-head that divides --n-head", found, "one of its divisors")
        if not self.full and (self.mask or self.source_length not in (None, self.length)):
            option = "--mask" if self.mask else "--source-length"
            raise ConfigError(f"--full beside {option}", "causal attention", f"{option} and --full")


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
    path = value_of("--from-config", argv)
    command = parse(Choose, "choose", argv, Choose(**heads_of(Path(path))) if path else None)  # type: ignore[arg-type]
    require_writable("--out", command.out)

    import torch

    from flashmore.backends.choose import Problem, choose
    from flashmore.measuring.result import make_record
    from flashmore.training.resolve import resolve_device

    if command.threads:
        torch.set_num_threads(command.threads)
    shape = (command.batch_size, command.n_head, command.length, command.head_dim)
    device = resolve_device(command.device)
    problem = Problem(
        shape,
        getattr(torch, command.dtype),
        device,
        command.dropout,
        source=command.source_length,
        kv_heads=command.n_kv_head,
        causal=not command.full,
        mask=command.mask,
        passes=command.passes,
    )
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
